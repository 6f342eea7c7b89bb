"""Loading models: the class that was trained, and adapters that fit it to the last weight."""

import json
import shutil

import pytest

from sft.common.command import UserError
from sft.common.models import generation_stops

INFER, MERGE = "sft/infer.py", "sft/merge.py"
QUESTION = ("--question", "Which?", "--choices", "a", "b", "--dtype", "float32")


@pytest.fixture(scope="module")
def adapter(tiny_deepseek, tmp_path_factory):
    """A random adapter of the tiny model, on two of its projections: 8 weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("adapter") / "final_model"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_deepseek), config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_deepseek).save_pretrained(folder)
    return folder


@pytest.fixture
def with_layers(tiny_deepseek, tmp_path):
    """Make a model like the tiny one, with another number of layers; returns its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(layers: int):
        folder = tmp_path / f"{layers}-layers"
        config = AutoConfig.from_pretrained(tiny_deepseek, num_hidden_layers=layers)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder

    return make


def changed(adapter, folder, rename=lambda key: key, **described):
    """A copy of an adapter in `folder`, with other names of its weights or another configuration."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapter, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({rename(key): weight for key, weight in weights.items()}, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **described}))
    return folder


def test_an_adapter_whose_weights_have_other_names_is_refused_wherever_it_is_loaded(
    refused, adapter, few_dev, tmp_path
):
    """As one of a model of text and images has, where its language model is loaded alone."""
    other = changed(
        adapter, tmp_path / "other", lambda key: key.replace("model.layers", "model.language_model.layers")
    )
    evaluate = ("--dataset_path", few_dev, "--output_dir", tmp_path / "eval", "--dtype", "float32")
    for words in ((INFER, *QUESTION), (MERGE, "--output_dir", tmp_path / "merged"), ("sft/evaluate.py", *evaluate)):
        line = refused(*words, "--model_path", other)
        assert f"the adapter {other} cannot be put onto" in line
        assert "it lacks 8 of 8 weights, the first base_model.model.model.layers.0.self_attn.q_proj.lora_A" in line
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("layers", "fault"),
    [
        (1, "4 of its 8 weights have no place in the model, the first base_model.model.model.layers.1.self_attn"),
        (3, "it lacks 4 of 12 weights, the first base_model.model.model.layers.2.self_attn"),
    ],
)
def test_an_adapter_of_a_model_with_other_layers_is_refused(refused, adapter, with_layers, tmp_path, layers, fault):
    other = changed(adapter, tmp_path / "other", base_model_name_or_path=str(with_layers(layers)))
    assert fault in refused(INFER, *QUESTION, "--model_path", other)


def test_an_adapter_of_another_size_is_refused_with_the_weight_that_differs(refused, adapter, tmp_path):
    other = changed(adapter, tmp_path / "other", r=8)
    line = refused(INFER, *QUESTION, "--model_path", other)
    assert "size mismatch for base_model.model.model.layers.0.self_attn.q_proj.lora_A" in line


def test_the_class_is_the_one_that_the_configuration_names():
    from transformers import AutoConfig

    from sft.common.models import model_class

    config = AutoConfig.for_model("qwen3_5")
    assert model_class(config).__name__ == "Qwen3_5ForCausalLM"
    config.architectures = ["Qwen3_5ForConditionalGeneration"]  # as SFTTrainer loads it
    assert model_class(config).__name__ == "Qwen3_5ForConditionalGeneration"
    for other in ("LlamaModel", "pipeline"):  # no head, and no model at all
        assert model_class(AutoConfig.for_model("llama", architectures=[other])).__name__ == "LlamaForCausalLM"
    with pytest.raises(ValueError, match="a model of type t5 does not write text"):
        model_class(AutoConfig.for_model("t5"))


def test_an_adapter_of_a_model_of_text_and_images_answers_as_it_was_trained(short_tokenizer, tmp_path):
    """AutoModelForCausalLM would take the language model alone, on which the adapter does nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, Qwen3_5ForConditionalGeneration

    from sft.common.models import load_model

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(short_tokenizer)}
    text |= {"layer_types": ["full_attention"] * 2, "pad_token_id": None}
    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=sight)
    torch.manual_seed(0)
    model = Qwen3_5ForConditionalGeneration(config)
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    model = Qwen3_5ForConditionalGeneration.from_pretrained(base)
    lora = LoraConfig(r=4, target_modules=r".*self_attn\.q_proj", init_lora_weights=False, task_type="CAUSAL_LM")
    trained = get_peft_model(model, lora).eval()
    trained.save_pretrained(folder)
    for place in (base, folder):
        short_tokenizer.save_pretrained(place)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        loaded, _ = load_model(str(folder), torch.float32)
        torch.testing.assert_close(loaded(input_ids=ids).logits, trained(input_ids=ids).logits)


@pytest.fixture(scope="module")
def quantised(tiny_deepseek, adapter, tmp_path_factory):
    """(the tiny model, stored in 4 bits; an adapter for it)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    base = tmp_path_factory.mktemp("quantised") / "model-bnb-4bit"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(tiny_deepseek, quantization_config=config).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_deepseek).save_pretrained(base)
    return base, changed(adapter, base.parent / "adapter", base_model_name_or_path=str(base))


def test_a_base_that_is_stored_quantised_is_reported_as_such(succeeds, refused, quantised, few_dev, tmp_path):
    base, adapter = quantised
    evaluate = ("sft/evaluate.py", "--model_path", adapter, "--dataset_path", few_dev, "--num_samples", 4)
    succeeds(*evaluate, "--dtype", "float32", "--output_dir", tmp_path, "--name", "tuned")
    results = json.loads((tmp_path / "tuned/results.json").read_text())
    assert results["fingerprint"]["options"]["quantization"] == "as stored, 4-bit"
    for model in (base, adapter):
        line = refused(INFER, *QUESTION, "--model_path", model, "--quantization", "8bit")
        assert "its weights are stored quantised, 4-bit: leave it out" in line


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({"eos_token_id": [1, 106]}, [1, 106]),
        ({"eos_token_id": 7}, [7]),
        ({}, []),
        ({"eos_token_id": None}, []),
        ({"eos_token_id": "</s>", "text_config": []}, []),
        ({"text_config": {"eos_token_id": 5}}, [5]),
        (None, "has no object"),
        (5, "has no object"),
        (["object"], "has no object"),
    ],
)
def test_the_tokens_at_which_a_model_stops_are_those_of_its_settings(tmp_path, settings, stops):
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    if isinstance(stops, list):
        assert generation_stops(str(tmp_path)) == stops
    else:
        with pytest.raises(UserError, match=stops):
            generation_stops(str(tmp_path))
