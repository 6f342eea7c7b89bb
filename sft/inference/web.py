"""A page in the browser to ask a model: question, options, the answer with the options' probabilities as bars."""

from typing import Any

from sft.common.command import UserError
from sft.common.prompts import LETTERS
from sft.inference.assistant import clean_question, sampled
from sft.inference.generation import Sampling

HEAD = """\
# Ask the model
**Not medical advice.** A language model answers from text alone; it sees no figure, and it can be wrong with great
confidence. For research and teaching."""
SHOWN = 4  # boxes for options at first; a button adds the others
NOTES = {"unparsed": "\n\n*(no single option is stated)*", "truncated": "\n\n*(token limit reached)*"}


def option_boxes() -> list:
    """A box for each option that a question may have: the first are shown, and a button shows the next."""
    import gradio

    options = [
        gradio.Textbox(label=f"Option {x}", elem_id=f"option-{x}", max_lines=1, visible=number < SHOWN)
        for number, x in enumerate(LETTERS)
    ]
    shown = gradio.State(SHOWN)
    more = gradio.Button("Add an option", size="sm", elem_id="more")

    def add(number: int) -> dict:
        number = min(number, len(LETTERS) - 1)  # a second click may come before the button is gone
        return {
            shown: number + 1,
            options[number]: gradio.update(visible=True),
            more: gradio.update(visible=number + 1 < len(LETTERS)),
        }

    more.click(add, shown, [shown, more, *options], api_name=False)
    return options


def page(assistant: Any, sampling: Sampling, thinking: str, examples: list) -> Any:
    """The page, as `gradio.Blocks`."""
    import gradio

    def ask(question: str, *options: str) -> tuple:
        choices = [option or "" for option in options]
        while choices and not choices[-1].strip():
            choices.pop()
        try:
            answer = assistant.ask(*clean_question(question, choices), sampling)
        except UserError as error:  # shown in the place of the answer, and the session goes on
            unseen = gradio.update(visible=False)
            return f"**Not asked:** {error}", unseen, unseen, "", ""
        bars = {f"{letter}. {answer.choices[letter]}": chance for letter, chance in answer.probabilities.items()}
        return (
            (answer.text or "*no answer*") + NOTES.get(answer.outcome, ""),
            gradio.update(value=bars or None, visible=bool(bars)),
            gradio.update(open=thinking == "show", visible=bool(answer.reasoning)),
            answer.reasoning,
            f"{answer.tokens} tokens in {answer.seconds:.1f} s{sampled(answer.temperature)}",
        )

    with gradio.Blocks(title="PMC-VQA: ask the model", analytics_enabled=False) as blocks:
        gradio.Markdown(HEAD)
        with gradio.Row():
            with gradio.Column():
                question = gradio.Textbox(label="Question", lines=3, elem_id="question")
                options = option_boxes()
                button = gradio.Button("Ask", variant="primary", elem_id="ask")
            with gradio.Column():
                gradio.Markdown("### Answer")
                text = gradio.Markdown(elem_id="answer", container=True, min_height=60)
                bars = gradio.Label(label="Probability of each option", visible=False, elem_id="bars")
                with gradio.Accordion("Reasoning", open=False, visible=False) as fold:
                    reasoning = gradio.Markdown(elem_id="reasoning")
                cost = gradio.Markdown(elem_id="cost")
        # An example has four options, and empties the boxes behind them.
        gradio.Examples(
            [[text, *choices] for text, choices in examples],
            [question, *options[:SHOWN]],
            options[SHOWN:],
            fn=lambda *_: [""] * (len(LETTERS) - SHOWN),
            run_on_click=True,
            label="Examples",
        )
        outputs = [text, bars, fold, reasoning, cost]
        for event in (button.click, question.submit):
            event(ask, [question, *options], outputs, api_name=False, concurrency_limit=1)
    return blocks


def serve(assistant: Any, sampling: Sampling, thinking: str, examples: list, host: str, port: int) -> None:
    """Serve the page until Ctrl-C; raises `UserError` if the port is taken."""
    blocks = page(assistant, sampling, thinking, examples)
    try:
        blocks.launch(server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port}: name another --port or --host") from error
    print(f"Ask at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()
