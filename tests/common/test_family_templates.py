"""Every family whose template TRL ships: what is trained is what inference will see, or one line says why not."""

import re
from functools import partial
from pathlib import Path

import pytest

from sft.common.chat_template import (
    closed_think_ids,
    open_think_prefix,
    render,
    split_completions,
    split_thinking,
    stop_tokens,
    think_marks,
    tokenizer_fingerprint,
    with_think_block,
)
from sft.common.command import UserError
from sft.common.prompts import completion_messages, prompt_messages
from sft.common.template_choice import set_chat_template
from sft.inference.likelihood import option_tokens
from tests.families import FAMILIES, OF_PARTS, TEMPLATES, table, text_of, with_family

# In this format every token of an answer is scored, the end of the turn too.
QUESTION = {"question": "Which colour?", "choices": ["red", "green"], "answer_format": "text"}
PROMPT = [{"role": "user", "content": "Which colour?\nA. red"}]
QWENS = [name for name in FAMILIES if name.startswith("qwen")]
SWITCHED = [name for name in FAMILIES if "enable_thinking" in text_of(name)]


answer = partial(completion_messages, "B. green")


@pytest.fixture
def tokenizer_of(short_tokenizer):
    """A family's tokenizer, as `load_tokenizer` leaves it, with the first tokens of DeepSeek's vocabulary."""

    def make(name: str, **values):
        stops = FAMILIES[name].stops if name in FAMILIES else ("<end_of_utterance>",)
        tokenizer = with_family(short_tokenizer, text_of(name), stops)
        tokenizer.generation_stops = tokenizer.convert_tokens_to_ids(list(stops))
        set_chat_template(tokenizer, None, values)
        return tokenizer

    return make


def check_row(tokenizer, rationale: str, trained: str) -> None:
    """The row is what transformers alone makes of it, and its last token is the first that would stop generation."""
    (row,) = split_completions(tokenizer, [PROMPT], [answer(rationale)])
    prompt, completion = row["prompt_ids"], row["completion_ids"]
    assert tokenizer.decode(completion) == trained
    options = {"return_dict": True}
    asked = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, **options)["input_ids"]
    every = tokenizer.apply_chat_template(PROMPT + answer(rationale), **options)["input_ids"]
    assert prompt == asked
    assert every[: len(prompt + completion)] == prompt + completion
    stops = stop_tokens(tokenizer)
    assert [token in stops for token in completion] == [False] * (len(completion) - 1) + [True]
    behind = [token for token in every[len(prompt + completion) :] if token not in stops]
    assert not tokenizer.decode(behind).strip()


def test_every_template_of_trl_has_a_row_in_the_table():
    stock = {file.stem for file in TEMPLATES.glob("*.jinja")}
    assert {name for name in stock if not name.endswith("_training")} == FAMILIES.keys() | OF_PARTS.keys()


@pytest.fixture(scope="module")
def qwen_with_markers(qwen_tokenizer):
    """Qwen's vocabulary with the special tokens of all its templates."""
    return with_family(qwen_tokenizer, "".join(map(text_of, QWENS)), FAMILIES["qwen3"].stops)


@pytest.mark.parametrize("name", QWENS)
def test_what_is_trained_with_qwens_own_vocabulary(qwen_with_markers, name):
    qwen_with_markers.chat_template = text_of(name)
    set_chat_template(qwen_with_markers, None)
    check_family(qwen_with_markers, FAMILIES[name])
    assert qwen_with_markers.encode("Hello! 1234") == [9707, 0, 220, 16, 17, 18, 19]  # Qwen's ids


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_with_a_familys_template(tokenizer_of, name):
    check_family(tokenizer_of(name), FAMILIES[name])


def check_family(tokenizer, family):
    assert tokenizer.template_source.startswith(family.template)
    for rationale, trained in (("", family.direct), ("Because.", family.reasoned)):
        if trained:
            check_row(tokenizer, rationale, trained)
            continue
        with pytest.raises(UserError, match=r"think block|leaves out 'Because\.'.* without rationales"):
            split_completions(tokenizer, [PROMPT], [answer(rationale)])


@pytest.mark.parametrize("name", SWITCHED)
def test_with_thinking_switched_off_the_bare_answer_is_trained(tokenizer_of, name):
    tokenizer, family = tokenizer_of(name, enable_thinking=False), FAMILIES[name]
    before = "\n" if name == "glm4moe" else ""  # which GLM writes between the closed think block and the answer
    check_row(tokenizer, "", before + "B. green" + re.search(r"(<[^>]*>)$", family.direct or family.reasoned)[1])
    assert ", with enable_thinking false" in tokenizer.template_source
    # It stands in the template, which travels with the model: no option at inference changes it.
    options = {"add_generation_prompt": True, "tokenize": False}
    asked = {tokenizer.apply_chat_template(PROMPT, **options, **o) for o in ({}, {"enable_thinking": True})}
    assert len(asked) == 1


@pytest.mark.parametrize("values", [{}, {"enable_thinking": False}])
@pytest.mark.parametrize("name", FAMILIES)
def test_options_are_scored_by_the_tokens_that_are_trained(tokenizer_of, name, values):
    if (values and name not in SWITCHED) or not (values or FAMILIES[name].direct):
        return
    tokenizer = tokenizer_of(name, **values)
    (tokens,) = option_tokens(tokenizer, [QUESTION])
    prompt = prompt_messages(*QUESTION.values())
    (row,) = split_completions(tokenizer, [prompt], [completion_messages("green")])
    assert tokens["shared"] + tokens["options"][1] == row["prompt_ids"] + row["completion_ids"]
    # Generation without thinking begins behind the closed think block, as training wrote it.
    closed = closed_think_ids(tokenizer)
    assert row["completion_ids"][: len(closed)] == closed
    assert "green" in tokenizer.decode(row["completion_ids"][len(closed) :][:3])


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.reasoned])
def test_the_reasoning_of_a_written_turn_is_told_from_its_answer(tokenizer_of, name):
    family, tokenizer = FAMILIES[name], tokenizer_of(name)
    for turn, reasoning in ((family.reasoned, "Because."), (family.direct, "")):
        if turn:
            text = open_think_prefix(tokenizer) + re.sub("<[^<>]*>$", "", turn)
            assert split_thinking(with_think_block(think_marks(tokenizer), text)) == (reasoning, "B. green")
    # A turn that was cut while it reasoned has no answer.
    cut = open_think_prefix(tokenizer) + family.reasoned.partition("cause.")[0]
    assert split_thinking(with_think_block(think_marks(tokenizer), cut)) == ("Be", "")


@pytest.mark.parametrize("name", OF_PARTS)
def test_a_template_that_takes_parts_alone_is_refused(tokenizer_of, name):
    tokenizer = tokenizer_of(name)
    with pytest.raises(UserError, match=re.escape(OF_PARTS[name])):
        split_completions(tokenizer, [PROMPT], [answer()])


def test_the_table_in_the_documentation_is_this_one():
    text = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    start = text.index("|---|", text.index("## Families"))
    assert text[start:].split("\n\n")[0].splitlines()[1:] == table()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"enable_thinkin": False}, "the chat template has no variable enable_thinkin"),
        ({"enable_thinking": None}, "enable_thinking is null: write true, false"),
        ({"enable_thinking": [1]}, "enable_thinking is .1.: write true, false"),
        ({"enable_thinking": float("nan")}, "enable_thinking is NaN: write true, false"),
        *(({name: True}, f"no variable {name}") for name in ("if", "user", "message", "add_generation_prompt")),
    ],
)
def test_a_value_that_the_template_does_not_take_is_refused(tokenizer_of, values, reason):
    with pytest.raises(UserError, match=reason):
        tokenizer_of("qwen3", **values)


def test_a_text_is_written_into_a_template_as_it_stands(tokenizer_of):
    text = 'a "quoted" \\ text\nof {{ two }} lines, µ'
    tokenizer = tokenizer_of("llama3_2", date_string=text)
    (row,) = split_completions(tokenizer, [PROMPT], [answer()])
    assert text in tokenizer.decode(row["prompt_ids"])


@pytest.mark.parametrize("beginning", ["\n", "    ", "  \n\t"])
def test_a_value_leaves_the_beginning_of_a_template_as_it_is(tokenizer_of, beginning):
    tokenizer = tokenizer_of("qwen3")
    prompts = []
    for values in ({}, {"enable_thinking": True}):
        tokenizer.chat_template = beginning + text_of("qwen3")
        set_chat_template(tokenizer, None, values)
        prompts += render(tokenizer, [PROMPT], add_generation_prompt=True)
    assert prompts[0] == prompts[1]


def test_a_model_that_was_trained_with_a_value_can_be_trained_with_another(tokenizer_of):
    tokenizer = tokenizer_of("qwen3", enable_thinking=False)
    set_chat_template(tokenizer, None, {"enable_thinking": True})
    check_row(tokenizer, "Because.", FAMILIES["qwen3"].reasoned)


def test_a_turn_that_ends_with_another_token_than_the_text_has_a_fingerprint_of_its_own(tokenizer_of):
    """Tokens that were prepared before the model's own stops were known are prepared again, and no others."""
    for name, other in (("gemma3", True), ("llama3_1", False), ("qwen3", False)):
        tokenizer = tokenizer_of(name)
        known = tokenizer_fingerprint(tokenizer)
        tokenizer.generation_stops = []
        assert (tokenizer_fingerprint(tokenizer) != known) == other


@pytest.mark.parametrize("name", ["gptoss", "gemma4_v5", "diffusion_gemma", "muse_glimmer"])
@pytest.mark.parametrize("thinking", ["show", "hide"])
def test_reasoning_between_a_familys_own_marks_is_set_apart_while_it_is_written(tokenizer_of, capsys, name, thinking):
    from sft.inference.terminal import AnswerStreamer

    tokenizer, family, printed = tokenizer_of(name), FAMILIES[name], []
    alone = ["<|channel|>final<|message|>B. green<|return|>"] if name == "gptoss" else []  # it may not reason at all
    for trained in (family.reasoned, family.direct, *alone):
        streamer = AnswerStreamer(tokenizer, thinking)
        streamer.put(tokenizer.encode("a prompt", return_tensors="pt"))
        for token in tokenizer.encode(trained, add_special_tokens=False, return_tensors="pt")[0]:
            streamer.put(token[None])
        streamer.end()
        printed.append(capsys.readouterr().out.split())
    thought = ["Because."] if thinking == "show" else []
    assert printed[0] == ["Thinking", "...", *thought, "B.", "green"]
    assert printed[1] in (["B.", "green"], ["Thinking", "...", "B.", "green"])  # the second where a block was opened
    if alone:
        assert printed[2] == ["B.", "green"]
        assert with_think_block(think_marks(tokenizer), alone[0]) == "B. green<|return|>"


def test_a_row_that_does_not_end_where_generation_stops_says_what_to_do(tokenizer_of):
    """As Qwen's base models, whose text ends with <|endoftext|>."""
    tokenizer = tokenizer_of("qwen2_5")
    end, tokenizer.eos_token = FAMILIES["qwen2_5"].stops
    tokenizer.generation_stops = []
    with pytest.raises(UserError, match=r"stops at '<\|endoftext\|>': .* Set eos_token: '<\|im_end\|>' in the recipe"):
        split_completions(tokenizer, [PROMPT], [answer()])
    tokenizer.eos_token = end
    check_row(tokenizer, "", "B. green<|im_end|>")
