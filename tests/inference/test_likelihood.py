"""Scores are what their definition says, whatever the batching."""

import pytest

from sft.common.chat_template import split_completions
from sft.common.prompts import completion_messages, prompt_messages
from sft.inference.likelihood import option_log_likelihoods, option_tokens

QUESTIONS = [
    {"question": "Which stain shows iron?", "choices": ["Congo red", "Prussian blue", "Oil Red O", "Von Kossa"]},
    {"question": "What is it?", "choices": ["Yes", "Yes, and more of it"]},
    {"question": "Which part of the eye becomes cloudy in cataract, as this figure shows?", "choices": list("abcd")},
    {"question": "How many?", "choices": ["1", "12", "123"]},
]


@pytest.fixture(scope="module")
def model(tiny_deepseek):
    import torch
    from transformers import AutoModelForCausalLM

    # float32, so that the order of summation is the only difference between two ways to compute the same score.
    return AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32).eval()


def log_probability(model, ids: list[int], start: int) -> float:
    """log p(ids[start:] | ids[:start]) from one plain forward pass."""
    import torch

    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logs[i - 1, ids[i]].item() for i in range(start, len(ids)))


@pytest.mark.parametrize(
    ("answer_format", "batch_size"), [("text", 1), ("text", 3), ("text", 16), ("letter", 3), ("letter_text", 3)]
)
def test_scores_are_the_log_likelihoods_of_the_texts_or_letters(model, short_tokenizer, answer_format, batch_size):
    questions = [{**question, "answer_format": answer_format, "gold": 0} for question in QUESTIONS]
    scores = dict(option_log_likelihoods(model, short_tokenizer, questions, batch_size))
    assert sorted(scores) == list(range(len(questions)))
    for index, question in enumerate(questions):
        (tokens,) = option_tokens(short_tokenizer, [question])
        shared, options = tokens["shared"], tokens["options"]
        if answer_format != "text":
            options = [option[:1] for option in options]
            assert list(map(short_tokenizer.decode, options)) == list("ABCD")[: len(options)]
        expected = [log_probability(model, shared + option, len(shared)) for option in options]
        assert scores[index] == pytest.approx(expected, abs=1e-4)


def test_options_are_the_completions_of_training(short_tokenizer):
    question, choices = QUESTIONS[0]["question"], QUESTIONS[0]["choices"]
    (tokens,) = option_tokens(short_tokenizer, [QUESTIONS[0] | {"answer_format": "text"}])
    (row,) = split_completions(
        short_tokenizer, [prompt_messages(question, choices, "text")], [completion_messages("Prussian blue")]
    )
    assert tokens["shared"] + tokens["options"][1] == row["prompt_ids"] + row["completion_ids"]
    assert tokens["options"][1][-1] == short_tokenizer.eos_token_id


def test_options_of_the_same_text_score_alike_and_a_single_one_has_a_score(model, short_tokenizer):
    texts = [["Iron", "Iron"], ["Iron"], ["Iron", "Iron", "Copper"]]
    questions = [{"question": "Which?", "choices": choices, "answer_format": "text"} for choices in texts]
    scores = dict(option_log_likelihoods(model, short_tokenizer, questions, 3))
    assert [len(scores[index]) for index in range(3)] == [2, 1, 3]
    assert scores[0][0] == pytest.approx(scores[0][1], abs=1e-4)
    assert scores[2][0] == pytest.approx(scores[2][1], abs=1e-4)
    assert scores[2][0] != pytest.approx(scores[2][2], abs=1e-4)


@pytest.mark.parametrize("architecture", ["Mamba", "FalconH1"])
def test_a_state_instead_of_a_cache_gives_the_same_scores(short_tokenizer, architecture):
    """Their state has read the padding behind shorter options, and cannot be continued like a cache."""
    import torch
    import transformers

    sizes = {"vocab_size": len(short_tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
    if architecture == "FalconH1":
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "mamba_d_ssm": 64, "mamba_n_heads": 8}
        sizes |= {"mamba_d_head": 8, "mamba_d_state": 16, "intermediate_size": 64}
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**sizes)
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    questions = [{**question, "answer_format": "text", "gold": 0} for question in QUESTIONS[:2]]
    scores = dict(option_log_likelihoods(model, short_tokenizer, questions, 2))
    for index, question in enumerate(questions):
        (tokens,) = option_tokens(short_tokenizer, [question])
        shared = tokens["shared"]
        expected = [log_probability(model, shared + option, len(shared)) for option in tokens["options"]]
        assert scores[index] == pytest.approx(expected, abs=1e-4)
