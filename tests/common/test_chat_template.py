"""The contract between training and inference, to the token."""

import copy
import re
from pathlib import Path

import pytest
import trl

from sft.common.chat_template import common_prefix, render, split_completions, token_ids
from sft.common.command import UserError
from sft.common.prompts import completion_messages, prompt_messages
from sft.common.template_choice import set_chat_template

PROMPT = prompt_messages("Which stain shows iron?", ["Congo red", "Prussian blue"], "letter_text")
ANSWER = completion_messages("B. Prussian blue")
REASONED = completion_messages("B. Prussian blue", "\n It binds ferric iron. \n")
STOCK = Path(trl.__file__).parent / "chat_templates/deepseek_r1_distill.jinja"

# Golden: what the model reads and what it is trained to write. A change here changes every model trained so far.
DEEPSEEK_PROMPT = (
    "<｜begin▁of▁sentence｜><｜User｜>Which stain shows iron?\nA. Congo red\nB. Prussian blue\n"
    "Answer with the letter and the text of the correct option.<｜Assistant｜><think>\n"
)
DEEPSEEK_ANSWER = "</think>\n\nB. Prussian blue<｜end▁of▁sentence｜>"
DEEPSEEK_IDS = [
    0, 128803, 15480, 34452, 4849, 10906, 2755, 35, 16, 49642, 4332, 201, 36, 16, 112993, 8295, 201, 7805, 418,
    270, 7010, 305, 270, 3051, 294, 270, 4813, 7284, 16, 128804, 128821, 201, 128822, 271, 36, 16, 112993, 8295,
    1,
]  # fmt: skip
SMOLLM2_PROMPT = (
    "<|im_start|>user\nWhich stain shows iron?\nA. Congo red\nB. Prussian blue\n"
    "Answer with the letter and the text of the correct option.<|im_end|>\n<|im_start|>assistant\n"
)
SMOLLM2_IDS = [
    1, 4093, 198, 14413, 15270, 2744, 4688, 47, 198, 49, 30, 19224, 2382, 198, 50, 30, 35727, 4461, 198, 21350,
    351, 260, 4386, 284, 260, 1694, 282, 260, 2887, 4622, 30, 2, 198, 1, 520, 9531, 198, 50, 30, 35727, 4461, 2,
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "completion", "prompt", "trained", "ids"),
    [
        ("deepseek", ANSWER, DEEPSEEK_PROMPT, DEEPSEEK_ANSWER, DEEPSEEK_IDS),
        ("deepseek", REASONED, DEEPSEEK_PROMPT, f"It binds ferric iron.\n{DEEPSEEK_ANSWER}", None),
        ("smollm2", ANSWER, SMOLLM2_PROMPT, "B. Prussian blue<|im_end|>", SMOLLM2_IDS),
    ],
)
def test_golden_text_and_token_ids_of_prompt_and_trained_part(request, family, completion, prompt, trained, ids):
    tokenizer = request.getfixturevalue(f"{family}_tokenizer")
    (row,) = split_completions(tokenizer, [PROMPT], [completion])
    assert tokenizer.decode(row["prompt_ids"]) == prompt
    assert tokenizer.decode(row["completion_ids"]) == trained
    assert ids in (None, row["prompt_ids"] + row["completion_ids"])


def test_deepseek_prompt_is_the_stock_templates_inference_prompt(deepseek_tokenizer):
    stock = STOCK.read_text(encoding="utf-8")
    # An earlier turn keeps its answer and loses its reasoning, in both.
    earlier = [*PROMPT, *completion_messages("</think>A. Congo red"), {"role": "user", "content": "Are you sure?"}]
    for messages in (PROMPT, [{"role": "system", "content": "Be brief."}, *PROMPT], earlier):
        options = {"chat_template": stock, "add_generation_prompt": True, "return_dict": True}
        expected = deepseek_tokenizer.apply_chat_template(messages, **options)["input_ids"]
        assert token_ids(deepseek_tokenizer, [messages], add_generation_prompt=True) == [expected]


@pytest.mark.parametrize("completion", [ANSWER, REASONED])
def test_stock_deepseek_template_is_refused_for_training(deepseek_tokenizer, completion):
    tokenizer = copy.deepcopy(deepseek_tokenizer)
    set_chat_template(tokenizer, STOCK)
    with pytest.raises(UserError, match="breaks parity"):
        split_completions(tokenizer, [PROMPT], [completion])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("{{- bos_token", "{{- bos_token + bos_token"), "twice"),
        (("+ answer | trim + eos_token", "+ answer | trim"), "would not learn to stop"),
        (("<think>\\n' + reasoning", "<think>\\n\\n' + reasoning"), "breaks parity"),
        (("'<｜User｜>' + message['content']", "'<｜User｜>'"), "leaves out 'Which stain shows iron?"),
        (("(message['reasoning_content'] or '')", "''"), "leaves out 'It binds ferric iron.'"),
    ],
)
def test_broken_templates_are_refused(deepseek_tokenizer, tmp_path, change, reason):
    tokenizer = copy.deepcopy(deepseek_tokenizer)
    assert change[0] in tokenizer.chat_template
    (tmp_path / "broken.jinja").write_text(tokenizer.chat_template.replace(*change), encoding="utf-8")
    set_chat_template(tokenizer, tmp_path / "broken.jinja")
    with pytest.raises(UserError, match=reason):
        split_completions(tokenizer, [PROMPT], [REASONED])


@pytest.mark.parametrize(
    "marker",
    ["<|user|>", "<｜Nutzer｜>", "<start_of_turn>", "[INST]", "<|turn>", "<turn|>", "<s>", "<<SYS>>", "<extra_id_0>"],
)
def test_a_template_whose_markers_the_model_would_read_as_words_is_refused(smollm2_tokenizer, tmp_path, marker):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    file = tmp_path / "other.jinja"
    file.write_text(tokenizer.chat_template.replace("<|im_start|>", marker), encoding="utf-8")
    with pytest.raises(UserError, match=f"chat template writes {re.escape(marker)}, .* the model's own"):
        set_chat_template(tokenizer, file)
    # As a token of the vocabulary it is one.
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.add_tokens([marker])
    set_chat_template(tokenizer, file)


def test_a_model_keeps_its_own_template_whatever_it_writes(smollm2_tokenizer):
    """Some families (Zephyr, Llama 2) write their markers as words, and learnt them so."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|turn|>")
    for none in (None, ""):
        set_chat_template(tokenizer, none)
    assert tokenizer.decode(split_completions(tokenizer, [PROMPT], [ANSWER])[0]["prompt_ids"]).startswith("<|turn|>")


def test_a_byte_order_mark_is_no_part_of_a_template(smollm2_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    (tmp_path / "notepad.jinja").write_text(tokenizer.chat_template, encoding="utf-8-sig")
    set_chat_template(tokenizer, tmp_path / "notepad.jinja")
    assert tokenizer.chat_template == smollm2_tokenizer.chat_template


@pytest.mark.parametrize("call", ["strftime_now('%d %b %Y')", 'strftime_now( "%Y-%m-%d" )'])
def test_a_template_that_writes_the_date_writes_the_same_one_every_day(smollm2_tokenizer, call):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = "{% if strftime_now is defined %}{{ " + call + " }}{% endif %}" + tokenizer.chat_template
    today = tokenizer.apply_chat_template(PROMPT, tokenize=False)
    set_chat_template(tokenizer, None)
    (fixed,) = render(tokenizer, [PROMPT])
    assert fixed != today
    assert fixed.startswith(("26 Jul 2024", "2024-07-26"))
    assert "strftime_now(" not in tokenizer.chat_template  # nor do others who load the trained model write today's


@pytest.mark.parametrize(
    "date",
    [
        "{{ strftime_now(messages[0]['role']) }}",
        "{% set now = strftime_now %}{{ now('%d') }}",
        "{{ strftime_now('%d' ~ ' %b') }}",
    ],
)
def test_a_date_that_cannot_be_fixed_is_refused(smollm2_tokenizer, date):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = date + tokenizer.chat_template
    with pytest.raises(UserError, match="its tokens differ every day"):
        set_chat_template(tokenizer, None)


def test_of_several_templates_the_default_one_is_used_with_a_fixed_date(smollm2_tokenizer):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    dated = "{{ strftime_now('%d %b %Y') }}" + smollm2_tokenizer.chat_template
    tokenizer.chat_template = {"default": dated, "tool_use": "{{ messages[0].content }}"}
    set_chat_template(tokenizer, None)
    assert render(tokenizer, [PROMPT])[0].startswith("26 Jul 2024")


@pytest.mark.parametrize(
    "fault", ["{{ '{a}'.format() }}", "{{ '{}'.format() }}", "{{ 1 / 0 }}", "{{ messages[9] + 1 }}"]
)
def test_whatever_a_template_raises_is_one_line(smollm2_tokenizer, fault):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = fault + tokenizer.chat_template
    with pytest.raises(UserError, match=r"^chat template: .+$"):
        render(tokenizer, [PROMPT])


def test_white_space_behind_the_end_of_the_turn_is_not_trained(smollm2_tokenizer):
    """As in the templates of Qwen and of SmolLM2 itself."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    assert split_completions(tokenizer, [PROMPT], [ANSWER]) == split_completions(smollm2_tokenizer, [PROMPT], [ANSWER])


def test_reasoning_is_refused_where_the_model_family_has_no_place_for_it(smollm2_tokenizer):
    with pytest.raises(UserError, match="no place for reasoning_content"):
        split_completions(smollm2_tokenizer, [PROMPT], [REASONED])


ODD_TEXTS = [
    *("plain", "", " outer space ", "two\nlines", "µ、漢字 – ‘quoted’", "\ue0000\ue000", "p < 0.05 and p > 0.01"),
    *("</think> in a text", "<｜Assistant｜> and <|im_start|>user", "{{ bos_token }} {% if %} [1] | trim"),
]


@pytest.mark.parametrize("family", ["deepseek", "smollm2"])
@pytest.mark.parametrize("generation", [True, False])
def test_filled_in_texts_are_what_the_template_renders(request, family, generation):
    tokenizer = request.getfixturevalue(f"{family}_tokenizer")
    conversations = [
        [{"role": "user", "content": text}, *answer]
        for text in ODD_TEXTS
        for other in ODD_TEXTS
        for answer in ([], completion_messages(other))
    ]
    expected = tokenizer.apply_chat_template(conversations, add_generation_prompt=generation, tokenize=False)
    assert render(tokenizer, conversations, generation) == expected


@pytest.mark.parametrize(
    "change",
    [
        ("message['content']", "message['content'] | upper"),
        ("message['content']", "message['content'][:20]"),
        ("message['content']", "message['content'] + (' Hm.' if '7' in message['content'] else '')"),
    ],
)
def test_a_template_that_looks_at_its_texts_is_rendered_row_by_row(smollm2_tokenizer, change):
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(*change)
    conversations = [[{"role": "user", "content": f"Which question is number {number}?"}] for number in range(30)]
    expected = [tokenizer.apply_chat_template(one, tokenize=False) for one in conversations]
    assert expected[7] != smollm2_tokenizer.apply_chat_template(conversations[7], tokenize=False)
    assert render(tokenizer, conversations) == expected


@pytest.mark.parametrize(
    ("sequences", "shared"),
    [
        *(([[1, 2, 3], other], [1, 2]) for other in ([1, 2, 4], [1, 2])),
        *(([[1, 2], *others], [1, 2]) for others in ([[1, 2, 3]], [[1, 2]], [])),
        *(([[], [1]], []), ([[2], [1]], [])),
    ],
)
def test_a_common_prefix_may_be_one_of_the_sequences(sequences, shared):
    assert common_prefix(sequences) == shared
