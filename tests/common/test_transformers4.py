"""What transformers 4 reads of a saved model; it is not installed here, so the files are looked at."""

import json

import pytest
from transformers import AutoConfig, AutoTokenizer

from sft.common.transformers4 import write_for_transformers_4

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
LONG = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
LAYERS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 20_000.0},
}
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 131_072, "pad_token_id": 0}
# (type of model, its rotary parameters in transformers 5, the same in transformers 4)
ROPE = {
    "plain": ("qwen2", {"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": None}),
    "llama 3": (
        "llama",
        {"rope_type": "llama3", "rope_theta": 500_000.0, **LLAMA3},
        {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ),
    "yarn": (
        "qwen2",
        {"rope_type": "yarn", "rope_theta": 1e6, **YARN},
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}},
    ),
    "longrope, which Phi-3 takes with three keys alone": (
        "phi3",
        {"rope_type": "longrope", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75, **LONG},
        {"rope_theta": 10_000.0, "rope_scaling": {"type": "longrope", **LONG}, "partial_rotary_factor": 0.75},
    ),
    "another base in each kind of layer": (
        "gemma3_text",
        LAYERS,
        {"rope_theta": 1e6, "rope_local_base_freq": 20_000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
}


def read(folder):
    """The configuration as transformers 5 reads it, without what both names of one value add to it."""
    described = AutoConfig.from_pretrained(folder).to_dict()
    rope = {key: value for key, value in described["rope_parameters"].items() if key != "type"}
    return {**described, "rope_parameters": rope, "partial_rotary_factor": None}


@pytest.mark.parametrize("case", ROPE)
def test_the_rotary_embedding_is_written_under_the_names_of_both_versions(case, tmp_path):
    kind, rope, older = ROPE[case]
    AutoConfig.for_model(kind, rope_parameters=rope, dtype="bfloat16", **SIZES).save_pretrained(tmp_path)
    before = read(tmp_path)
    assert write_for_transformers_4(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written[key] for key in older} == older
    assert written["torch_dtype"] == written["dtype"] == "bfloat16"
    assert read(tmp_path) == before
    assert write_for_transformers_4(tmp_path)  # of a folder that has been through it
    assert json.loads((tmp_path / "config.json").read_text()) == written


def test_the_language_model_inside_a_model_of_text_and_images_is_written_too(tmp_path):
    AutoConfig.for_model("gemma3", text_config={"rope_parameters": LAYERS}).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert write_for_transformers_4(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (1e6, 20_000.0)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before


def test_a_family_that_the_older_names_cannot_express_is_reported(tmp_path):
    AutoConfig.for_model("gemma4_text").save_pretrained(tmp_path)
    assert not write_for_transformers_4(tmp_path)
    assert "rope_theta" not in json.loads((tmp_path / "config.json").read_text())


def test_a_tokenizer_has_a_class_that_both_versions_know_and_is_the_same(short_tokenizer, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    short_tokenizer.save_pretrained(before)
    tokenizer = AutoTokenizer.from_pretrained(before)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|mark|>"]})
    for folder in (before, after):
        tokenizer.save_pretrained(folder)
    assert json.loads((before / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    write_for_transformers_4(after)
    written = json.loads((after / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|mark|>"]  # a list under its new name stops transformers 4
    assert "extra_special_tokens" not in written
    old, new = AutoTokenizer.from_pretrained(before), AutoTokenizer.from_pretrained(after)
    texts = ["a  b\n\n‘é’ 12 345", " \t𝔘 ", "", "<think>x</think><|mark|><｜User｜>"]
    assert new(texts)["input_ids"] == old(texts)["input_ids"]
    assert new.special_tokens_map == old.special_tokens_map
    assert new.all_special_ids == old.all_special_ids
    assert new.chat_template == old.chat_template
