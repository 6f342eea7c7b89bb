"""The memory estimate counts what is really there: parameters, quantised weights, activations."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sft.common.command import GIB
from sft.training.config import resolve
from sft.training.launch import Launch
from sft.training.memory import count_parameters, estimate, layer_activations, saved_by_autograd
from sft.training.model import lora_config


@pytest.fixture(scope="module")
def config(embedded_model):
    """The embedded model's configuration: a Llama with 30 layers."""
    return AutoConfig.from_pretrained(embedded_model)


def settings(*options: str):
    return resolve(["recipes/pmcvqa.yaml", "--load_in_8bit", "no", "--use_cpu", "yes", *options])


def test_parameters_are_those_of_the_real_model(config, embedded_model):
    from peft import get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(embedded_model), lora_config(settings()))
    counted = count_parameters(config, settings())
    assert (counted.trained, counted.total) == model.get_nb_trainable_parameters()


def test_seven_projections_of_the_8b_model_are_half_a_percent_not_the_published_0_88():
    from tests.benchmarks.memory import LLAMA_8B

    counted = count_parameters(LLAMA_8B, settings())
    assert counted.trained == 41_943_040
    assert counted.trained / counted.total == pytest.approx(0.0052, abs=5e-5)


@pytest.mark.parametrize("options", [("--load_in_8bit", "yes"), ("--load_in_4bit", "yes"), ()], ids=["8", "4", "bf16"])
def test_weights_take_what_bitsandbytes_makes_of_them(config, embedded_model, options):
    from trl import ModelConfig, get_quantization_config

    chosen = settings(*options)
    model = AutoModelForCausalLM.from_pretrained(
        embedded_model, dtype="bfloat16", quantization_config=get_quantization_config(chosen.build(ModelConfig))
    )
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    for module in model.modules():  # what bitsandbytes keeps beside the weights
        weight = getattr(module, "weight", None)
        for scales in (getattr(getattr(weight, "quant_state", None), "absmax", None), getattr(weight, "SCB", None)):
            held += scales.numel() * scales.element_size() if scales is not None else 0
    parameters = count_parameters(config, chosen)
    assert estimate(config, chosen, Launch(), parameters, 8)["weights"] == pytest.approx(held / GIB, rel=0.01)


@pytest.mark.parametrize("lora", [True, False], ids=["LoRA", "full"])
def test_activations_are_what_autograd_keeps_of_a_real_layer(config, lora):
    """The same count on real tensors of two packed rows, with a layer more: what the estimate adds for each layer."""
    import torch
    from peft import get_peft_model

    chosen = settings("--use_peft", "yes" if lora else "no", "--dtype", "float32")
    packed = torch.arange(48).repeat(2)[None]
    sizes = []
    for layers in (2, 3):
        config.num_hidden_layers = layers
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        if lora:
            model = get_peft_model(model, lora_config(chosen))
            model.enable_input_require_grads()
        model.train()
        body = model.get_base_model() if lora else model
        with saved_by_autograd(model.parameters()) as saved, torch.autocast("cpu", dtype=torch.bfloat16):
            body.base_model(input_ids=torch.zeros(1, 96, dtype=torch.long), position_ids=packed, use_cache=False)
            sizes.append(sum(storage.nbytes() for storage in saved.values()))
    assert layer_activations(config, chosen, 96) == sizes[1] - sizes[0]


def test_checkpointing_keeps_one_layer_and_every_layers_input(config):
    parts = {}
    for answer in ("yes", "no"):
        chosen = settings("--activation_checkpointing", answer)
        parameters = count_parameters(config, chosen)
        parts[answer] = estimate(config, chosen, Launch(), parameters, 1000)["activations"] * GIB
    layer = layer_activations(config, settings(), 1000)
    inputs = config.num_hidden_layers * 1000 * config.hidden_size * 2
    assert parts["no"] == pytest.approx(layer * config.num_hidden_layers)
    assert parts["yes"] == pytest.approx(layer + inputs)


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
