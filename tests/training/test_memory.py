"""The memory estimate counts what is really there: parameters, quantised weights, activations."""

import pytest
import torch
import transformers
from peft import get_peft_model
from transformers import AutoConfig

from sft.common.command import GIB
from sft.common.models import meta_model, model_class
from sft.training.config import resolve
from sft.training.launch import Launch
from sft.training.memory import (
    count_activations,
    count_parameters,
    estimate,
    saved_by_autograd,
    trained_meta_model,
)
from sft.training.model import lora_config, parameter_counts, quantization_config

ALL_LINEAR = ("--lora_target_modules", "all-linear", "--lora_dropout", "0")
GROUPED = {"num_key_value_heads": 2}
ARCHITECTURES = ["Llama", "GPT2", "Gemma2", "Gemma3", "Phi3", "Qwen3Moe", "Mixtral", "GptOss", "Granite", "Llava"]


@pytest.fixture(scope="module")
def config(embedded_model):
    """The embedded model's configuration: a Llama with 30 layers."""
    return AutoConfig.from_pretrained(embedded_model)


def settings(*options: str):
    return resolve(["recipes/pmcvqa.yaml", "--load_in_8bit", "no", "--use_cpu", "yes", *options])


def tiny(architecture: str):
    """A configuration of an architecture with a vocabulary and layers that a test can hold."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 320, "head_dim": 16, "pad_token_id": 0}
    experts = {"num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
    make = getattr(transformers, f"{architecture}Config")
    sizes |= GROUPED if architecture not in ("GPT2", "OPT", "Bloom") else {"n_layer": 2, "n_head": 4}
    sizes |= experts if architecture.endswith(("Moe", "Oss", "Mixtral")) else {}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    both = {"text_config": sizes, "vision_config": vision}
    return make(**both) if "text_config" in make.sub_configs else make(**sizes)


def bytes_held(model) -> int:
    """Bytes of a model's weights, with what bitsandbytes keeps beside them."""
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        nested = getattr(getattr(state, "state2", None), "absmax", None)
        for scales in (getattr(state, "absmax", None), nested, getattr(weight, "SCB", None)):
            held += scales.numel() * scales.element_size() if scales is not None else 0
    return held


@pytest.mark.parametrize("bits", ["8", "4"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_and_trained_parameters_are_those_of_the_loaded_model(architecture, bits, tmp_path):
    """What bitsandbytes leaves as it is (routers, experts, the output layer), and where PEFT puts an adapter."""
    from trl import ModelConfig

    config = tiny(architecture)
    model_class(config)(config).to(torch.bfloat16).save_pretrained(tmp_path)
    chosen = settings(f"--load_in_{bits}bit", "yes", *ALL_LINEAR)
    quantised = quantization_config(chosen.build(ModelConfig), meta_model(config))
    model = model_class(config).from_pretrained(tmp_path, dtype="bfloat16", quantization_config=quantised)
    counted = count_parameters(config, chosen)
    assert counted.frozen_bytes == pytest.approx(bytes_held(model), rel=0.002)
    real = parameter_counts(get_peft_model(model, lora_config(chosen, model)))
    assert (counted.trained, counted.total) == (real["trained"], real["total"])


def test_seven_projections_of_the_8b_model_are_half_a_percent_not_the_published_0_88():
    from tests.benchmarks.memory import LLAMA_8B

    counted = count_parameters(LLAMA_8B, settings())
    assert counted.trained == 41_943_040
    assert counted.trained / counted.total == pytest.approx(0.0052, abs=5e-5)


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "full"])
@pytest.mark.parametrize("architecture", ["Llama", "Gemma3", "Qwen3Moe"])
def test_activations_are_what_autograd_keeps_of_a_real_model(architecture, lora):
    """The same count on real tensors of two packed rows: alike layers, a text part in a whole, experts."""
    config = tiny(architecture)
    # Experts are multiplied in groups in bfloat16 alone, where there is no data.
    dtype = "bfloat16" if architecture == "Qwen3Moe" else "float32"
    chosen = settings("--use_peft", "yes" if lora else "no", "--dtype", dtype, *ALL_LINEAR)
    model = model_class(config)(config).to(getattr(torch, chosen.dtype)).train()
    model = get_peft_model(model, lora_config(chosen, model)) if lora else model
    packed = torch.arange(48).repeat(2)[None]
    with saved_by_autograd(model.parameters()) as saved, torch.autocast("cpu", dtype=torch.bfloat16):
        body = (model.get_base_model() if lora else model).base_model
        body(input_ids=torch.zeros(1, 96, dtype=torch.long), position_ids=packed, use_cache=False)
        kept = sum(storage.nbytes() for storage in saved.values())
    counted = count_activations(trained_meta_model(config, chosen), chosen, 96)
    assert sum(counted.layers) + counted.outside == pytest.approx(kept, rel=0.01)
    assert len(counted.layers) == config.get_text_config().num_hidden_layers


def test_checkpointing_keeps_one_layer_and_every_layers_input(config):
    parts = {}
    for answer in ("yes", "no"):
        chosen = settings("--activation_checkpointing", answer)
        parameters = count_parameters(config, chosen)
        parts[answer] = estimate(config, chosen, Launch(), parameters, 1000)["activations"] * GIB
    kept = count_activations(trained_meta_model(config, settings()), settings(), 1000)
    inputs = config.num_hidden_layers * 1000 * config.hidden_size * 2
    assert parts["no"] == pytest.approx(sum(kept.layers) + kept.outside, rel=0.01)
    assert parts["yes"] == pytest.approx(max(kept.layers) + inputs + kept.outside, rel=0.02)


def test_more_processes_share_what_the_launcher_divides(config):
    chosen = settings("--use_peft", "no")
    parameters = count_parameters(config, chosen)

    def parts(launch: Launch) -> dict[str, float]:
        return estimate(config, chosen, launch, parameters, 100)

    alone, zero2 = parts(Launch()), parts(Launch("deepspeed", 4, zero_stage=2))
    zero3 = parts(Launch("deepspeed", 4, zero_stage=3))
    assert zero2["weights"] == alone["weights"]
    assert zero3["weights"] == pytest.approx(alone["weights"] / 4)
    assert zero3["optimizer"] == zero2["optimizer"] == pytest.approx(12 * parameters.trained / 4 / GIB)


@pytest.mark.parametrize(("precision", "size"), [("--bf16 yes", 2), ("--bf16 no --fp16 yes", 4), ("--bf16 no", 4)])
def test_adapters_of_a_quantised_model_are_bfloat16_in_bf16_runs_alone(precision, size):
    from sft.training.memory import trained_bytes

    assert trained_bytes(settings("--load_in_8bit", "yes", *precision.split()), Launch()) == size
