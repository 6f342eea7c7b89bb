"""Quirks of chat models that would train something else than is asked, or end a run in the night."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from sft.common.chat_template import IGNORED, split_completions, token_ids
from sft.common.data import load_split
from sft.common.models import load_tokenizer
from sft.common.prompts import completion_messages, prompt_messages
from sft.inference.likelihood import option_tokens
from tests.families import FAMILIES, text_of, with_family, write_tiny

QUESTION = {"question": "Which colour?", "choices": ["red", "green"], "answer_format": "letter_text"}
ADDED = {
    # As Llama 3's tokenizer adds the beginning, and as those of add_eos_token add the end.
    "the beginning of the text": "<bos> $A",
    "the end of the text": "$A <|eot_id|>",
    "both": "<bos> $A <|eot_id|>",
}


def adding(tokenizer, form: str):
    """A copy of the tokenizer that adds tokens to every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tokenizer)
    marks = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in ("<bos>", "<|eot_id|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=marks)
    return tokenizer


@pytest.fixture(scope="module")
def llama(short_tokenizer):
    """A tokenizer with Llama 3.1's template, which writes the beginning of the text itself."""
    template = text_of("llama3_1").replace("<|begin_of_text|>", "<bos>")
    return with_family(short_tokenizer, template, FAMILIES["llama3_1"].stops)


@pytest.mark.parametrize("added", ADDED)
def test_what_a_tokenizer_adds_to_texts_is_in_no_row_and_in_no_prompt(llama, added):
    plain, tokenizer = llama, adding(llama, ADDED[added])
    assert len(tokenizer("red")["input_ids"]) > len(plain("red")["input_ids"])
    conversation = prompt_messages(**QUESTION)
    rows = [
        split_completions(each, [conversation], [completion_messages("B. green")])[0] for each in (plain, tokenizer)
    ]
    assert rows[0] == rows[1]
    ids = rows[1]["prompt_ids"] + rows[1]["completion_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    asked = token_ids(tokenizer, [conversation], add_generation_prompt=True)[0]
    assert asked == rows[1]["prompt_ids"]
    assert option_tokens(tokenizer, [QUESTION]) == option_tokens(plain, [QUESTION])


def test_no_prompt_has_a_system_message(few_dev):
    """Gemma's template, among others, has no place for one."""
    for row in load_split(str(few_dev), "train").select(range(20)):
        assert [turn["role"] for turn in row["prompt"] + row["completion"]] == ["user", "assistant"]


RUN = ("sft/run.py", "recipes/quickstart.yaml", "--chat_template_path=", "--max_steps", "2", "--bf16", "no")
RUN += ("--dtype", "float32", "--mcq_eval_samples", "4", "--packing", "no", "--per_device_train_batch_size", "4")


def tiny(folder: Path, tokenizer, family: str = "qwen2_5", **sizes) -> Path:
    write_tiny(folder, "Llama", tokenizer, FAMILIES[family].stops, **sizes)
    return folder


@pytest.mark.parametrize("padding", ["the end of the turn", "none"])
def test_a_padding_token_that_is_the_end_of_the_turn_or_missing_costs_no_trained_token(
    padding, short_tokenizer, few_dev, succeeds, tmp_path
):
    tokenizer = with_family(short_tokenizer, text_of("qwen2_5"), FAMILIES["qwen2_5"].stops)
    tokenizer.pad_token = tokenizer.eos_token if padding != "none" else None
    base = tiny(tmp_path / "base", tokenizer)
    assert load_tokenizer(str(base)).pad_token == (tokenizer.eos_token if padding != "none" else None)
    out = tmp_path / "out"
    done = succeeds(*RUN, "--model_name_or_path", base, "--dataset_name", few_dev, "--output_dir", out)
    trained = load_tokenizer(str(out / "final_model"))
    # Rows of unequal lengths in one batch, as the trainer batches them: the end of the turn stays trained.
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = load_split(str(few_dev), "train").select(range(4))
    split = split_completions(trained, rows["prompt"], rows["completion"])
    examples = [
        {"input_ids": row["prompt_ids"] + row["completion_ids"]}
        | {"labels": [IGNORED] * len(row["prompt_ids"]) + row["completion_ids"]}
        for row in split
    ]
    pad = trained.eos_token_id if trained.pad_token_id is None else trained.pad_token_id
    batch = DataCollatorForLanguageModeling(pad_token_id=pad)(examples)
    for labels, row in zip(batch["labels"], split, strict=True):
        assert labels[labels != IGNORED].tolist() == row["completion_ids"]
        assert row["completion_ids"][-1] == trained.eos_token_id
    succeeds(
        *("sft/evaluate.py", "--model_path", out / "final_model", "--dataset_path", few_dev, "--num_samples", "4"),
        *("--method", "likelihood", "generation", "--max_new_tokens", "4", "--output_dir", tmp_path),
    )
    assert "Trained" in done.stdout


def test_a_tokenizer_that_writes_tokens_without_an_embedding_is_refused(short_tokenizer, few_dev, refused, tmp_path):
    tokenizer = with_family(short_tokenizer, text_of("qwen2_5"), FAMILIES["qwen2_5"].stops)
    base = tiny(tmp_path / "base", tokenizer)
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(ends)  # one too few
    model.save_pretrained(base)
    words = ("--model_name_or_path", base, "--dataset_name", few_dev, "--output_dir", tmp_path / "out")
    wanted = f"has embeddings for {ends} tokens, and its tokenizer writes"
    assert wanted in refused(*RUN, *words)
    assert wanted in refused("sft/evaluate.py", "--model_path", base, "--dataset_path", few_dev, "--num_samples", "4")


def test_a_vocabulary_padded_beyond_the_tokenizer_is_trained_and_never_written(
    short_tokenizer, few_dev, succeeds, tmp_path
):
    tokenizer = with_family(short_tokenizer, text_of("qwen2_5"), FAMILIES["qwen2_5"].stops)
    base = tiny(tmp_path / "base", tokenizer)
    assert AutoConfig.from_pretrained(base).vocab_size > len(tokenizer)
    out = tmp_path / "out"
    succeeds(*RUN, "--model_name_or_path", base, "--dataset_name", few_dev, "--output_dir", out)
    assert len(load_tokenizer(str(out / "final_model"))) == len(tokenizer)


def test_an_output_layer_that_is_trained_whole_is_untied_from_the_embeddings_also_when_merged(
    short_tokenizer, few_dev, succeeds, tmp_path
):
    """`lora_modules_to_save: lm_head` on a model whose output layer is its embeddings."""
    tokenizer = with_family(short_tokenizer, text_of("qwen2_5"), FAMILIES["qwen2_5"].stops)
    base = tiny(tmp_path / "base", tokenizer, tie_word_embeddings=True)
    out = tmp_path / "out"
    words = ("--model_name_or_path", base, "--dataset_name", few_dev, "--output_dir", out)
    succeeds(*RUN, *words, "--lora_modules_to_save", "lm_head")
    succeeds("sft/merge.py", "--model_path", out / "final_model", "--output_dir", tmp_path / "merged")
    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.equal(merged.get_input_embeddings().weight, before.get_input_embeddings().weight)
    (trained,) = [
        tensor
        for name, tensor in load_file(out / "final_model/adapter_model.safetensors").items()
        if "lm_head" in name
    ]
    assert torch.equal(merged.lm_head.weight, trained.to(torch.bfloat16).float())
    assert not torch.equal(merged.lm_head.weight, before.lm_head.weight)
