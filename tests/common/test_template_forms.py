"""Forms of chat templates that TRL does not ship, in templates of our own: trained as inference asks, or refused."""

import pytest

from sft.common.chat_template import render, split_completions, stop_tokens
from sft.common.command import UserError
from sft.common.prompts import completion_messages
from sft.common.template_choice import set_chat_template
from tests.families import with_family

PROMPT = [{"role": "user", "content": "Which colour?\nA. red"}]
EACH = "{%- for m in messages %}"
TURN = "{%- if m.role == 'user' %}{{- USER }}{%- else %}{{- ANSWER }}{%- endif %}{%- endfor %}"


def turns(user: str, answer: str) -> str:
    """A loop over the messages that writes these Jinja expressions."""
    return EACH + TURN.replace("USER", user).replace("ANSWER", answer)


CHATML = "'<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n'"
ASKS = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
# (template, ends of a turn, what is trained)
DIRECT = {
    "instructions in brackets, white space behind the end": (
        "{{- bos_token }}" + turns("'[INST] ' ~ m.content ~ ' [/INST]'", "m.content ~ eos_token ~ ' '"),
        *(("<eos>",), "B. green<eos>"),
    ),
    "a separator in place of a new line": (
        turns(*["'<|im_start|>' ~ m.role ~ '<|im_sep|>' ~ m.content ~ '<|im_end|>'"] * 2)
        + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}",
        *(("<|im_end|>",), "B. green<|im_end|>"),
    ),
    "the end of the text behind the end of the turn": (
        turns(*["'<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>'"] * 2)
        + "{{- '<|assistant|>' if add_generation_prompt else eos_token }}",
        *(("<|endoftext|>", "<|end|>"), "B. green<|end|>"),
    ),
    "a prompt that is written inside the loop": (
        turns("'<|user|>\n' ~ m.content ~ '\n'", "'<|assistant|>\n' ~ m.content ~ eos_token").removesuffix(
            "{%- endfor %}"
        )
        + "{%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}{%- endfor %}",
        *(("<|endoftext|>",), "B. green<|endoftext|>"),
    ),
}
# A switch in words of the system's block, and a rationale only as a part of the answer's text.
SWITCH = (
    "{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}"
    "{%- set closed = '' if mode == '/think' else '<think>\n\n</think>\n' %}"
    "{{- '<|im_start|>system\nDate: ' ~ strftime_now('%d %B %Y') ~ '\nMode: ' ~ mode ~ '\n' }}"
    "{%- if mode == '/think' %}{{- 'Write <think> thoughts </think> first.\n' }}{%- endif %}{{- '<|im_end|>\n' }}"
    + turns(CHATML, "'<|im_start|>assistant\n' ~ closed ~ m.content ~ '<|im_end|>\n'")
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' ~ closed }}{%- endif %}"
)


@pytest.fixture
def tokenizer_of(short_tokenizer):
    """A tokenizer with a template, its markers and ends of a turn."""

    def make(template: str, stops: tuple[str, ...], **values):
        tokenizer = with_family(short_tokenizer, template, stops)
        tokenizer.generation_stops = tokenizer.convert_tokens_to_ids(list(stops))
        set_chat_template(tokenizer, None, values)
        return tokenizer

    return make


def trained(tokenizer, rationale: str = "") -> str:
    """The text that is trained: it follows on the prompt that transformers alone writes, and its last token stops."""
    messages = completion_messages("B. green", rationale)
    (row,) = split_completions(tokenizer, [PROMPT], [messages])
    options = {"return_dict": True}
    asked = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, **options)["input_ids"]
    every = tokenizer.apply_chat_template(PROMPT + messages, **options)["input_ids"]
    ids = row["prompt_ids"] + row["completion_ids"]
    assert row["prompt_ids"] == asked
    assert every[: len(ids)] == ids
    assert ids[-1] in stop_tokens(tokenizer)
    return tokenizer.decode(row["completion_ids"])


@pytest.mark.parametrize("form", DIRECT)
def test_a_form_that_trl_does_not_ship_is_trained_with_the_models_own_template(tokenizer_of, form):
    template, stops, text = DIRECT[form]
    tokenizer = tokenizer_of(template, stops)
    assert tokenizer.template_source == "the model's own"
    assert trained(tokenizer) == text
    with pytest.raises(UserError, match=r"leaves out 'Because\.'.* without rationales"):
        trained(tokenizer, "Because.")


def test_a_model_that_thinks_is_trained_with_rationales_that_its_template_takes_in_the_answer_alone(tokenizer_of):
    tokenizer = tokenizer_of(SWITCH, ("<|im_end|>",))
    assert tokenizer.template_source == "the model's own, with rationales as a think block of the answer"
    assert trained(tokenizer) == "B. green<|im_end|>"
    assert trained(tokenizer, "Because.") == "<think>\nBecause.\n</think>\nB. green<|im_end|>"
    # A run that goes on from this one's final_model keeps the template.
    template = tokenizer.chat_template
    set_chat_template(tokenizer, None)
    assert tokenizer.chat_template == template


def test_the_prompt_of_a_model_that_thinks_stays_its_own(tokenizer_of):
    tokenizer = tokenizer_of(SWITCH, ("<|im_end|>",))
    (prompt,) = render(tokenizer, [PROMPT], add_generation_prompt=True)
    tokenizer.chat_template = SWITCH.replace("strftime_now('%d %B %Y')", "'26 July 2024'")
    assert render(tokenizer, [PROMPT], add_generation_prompt=True) == [prompt]


def test_with_its_switch_off_a_rationale_is_refused(tokenizer_of):
    tokenizer = tokenizer_of(SWITCH, ("<|im_end|>",), enable_thinking=False)
    assert tokenizer.template_source == "the model's own, with enable_thinking false"
    assert trained(tokenizer) == "B. green<|im_end|>"
    assert tokenizer.chat_template.startswith("{%- set enable_thinking = false %}\n{%- set mode")
    with pytest.raises(UserError, match=r"leaves out 'Because\.'"):
        trained(tokenizer, "Because.")


def test_a_vocabulary_without_the_mark_of_a_think_block_is_not_trained_to_write_it_as_words(smollm2_tokenizer):
    tokenizer = with_family(smollm2_tokenizer, turns(CHATML, CHATML) + ASKS + "{#- </think> #}", ("<|im_end|>",))
    set_chat_template(tokenizer, None)
    assert tokenizer.template_source == "the model's own"
    with pytest.raises(UserError, match=r"leaves out 'Because\.'"):
        trained(tokenizer, "Because.")


def test_a_prompt_that_closes_a_block_which_the_row_does_not_write_is_refused_with_the_advice_that_helps(tokenizer_of):
    closes = ASKS.replace("assistant\n", "assistant\n<think>\n\n</think>\n\n")
    tokenizer = tokenizer_of(turns(CHATML, CHATML) + closes, ("<|im_end|>",))
    with pytest.raises(UserError, match=r"breaks parity.* Name another template, one that writes both alike"):
        trained(tokenizer)


def test_a_template_without_an_end_of_the_turn_is_refused(tokenizer_of):
    tokenizer = tokenizer_of(turns("'<|user|>' ~ m.content", "'<|assistant|>' ~ m.content"), ("<|endoftext|>",))
    tokenizer.chat_template += "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
    with pytest.raises(UserError, match=r"with '.*B. green', and generation stops at '<\|endoftext\|>'"):
        trained(tokenizer)
