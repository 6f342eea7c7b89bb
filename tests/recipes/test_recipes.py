"""Every shipped recipe runs, launched as its first lines say, and the pmcvqa family differs only where it says so.

The model is a tiny random one of the recipe's family. Quantisation, DDP and DeepSpeed are real on this CPU;
the name of a test says what a CPU cannot show.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

from sft.training.checks import check_all
from sft.training.config import resolve
from sft.training.hardware import planned_hardware
from sft.training.launch import Launch
from sft.training.model import cast_trained_to_float32, lora_config
from tests.benchmarks.memory import peak

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in ROOT.glob("recipes/*.yaml"))
SEEING = [name for name in RECIPES if name.startswith("pmcvqa_vl")]
FAMILIES = {"pmcvqa": [name for name in RECIPES if name.startswith("pmcvqa") and name not in SEEING]}
FAMILIES["pmcvqa_vl"] = SEEING
# FSDP falls back to DDP on a CPU, so preflight is as far as it goes.
RUNNABLE = [name for name in RECIPES if name != "pmcvqa_fsdp2"]


@pytest.fixture(scope="session")
def run_of(recipe_run, prepare, prepared, tmp_path_factory):
    """`recipe_run` of a recipe; for the one on rationales, the sample with a rationale for every training question."""
    from datasets import load_dataset

    file = tmp_path_factory.mktemp("rationales") / "why.jsonl"
    why = {"reasoning": "The stain binds the pigment."}
    file.write_text("".join(json.dumps({"id": id, **why}) + "\n" for id in load_dataset(str(prepared))["train"]["id"]))
    reasoned = prepare("--dev_size", 24, "--add_reasoning", file, "--require_reasoning")
    return lambda recipe: recipe_run(recipe, **({"data": reasoned} if "reasoning" in recipe else {}))


def read(recipe: str) -> dict:
    """The keys and values of a shipped recipe."""
    return yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text())


def says(recipe: str) -> str:
    """What the first lines of a recipe say, as one line."""
    first_lines = (ROOT / f"recipes/{recipe}.yaml").read_text().split("\n\n")[0].split("\n")
    return " ".join(line.lstrip("# ") for line in first_lines)


@pytest.mark.parametrize("recipe", RUNNABLE)
def test_recipe_trains_as_launched_on_a_cpu_in_bf16_or_under_deepspeed_in_float32(recipe, run_of):
    out, done = run_of(recipe)
    settings = read(recipe)
    # The launcher that the recipe names was not replaced by another one in silence.
    stage = re.search(r"zero(\d)", settings["output_dir"] + says(recipe))
    manifest = json.loads((out / "run_manifest.json").read_text())
    assert manifest["zero_stage"] == (int(stage[1]) if stage else 0)
    assert (out / "checkpoint-4/global_step4").is_dir() == bool(stage)
    # DeepSpeed compiled nothing: training needs no C++ compiler and no minute for it (sft/training/model.py).
    assert "built successfully" not in done.stdout
    # Quantised weights were quantised, trained weights trained.
    frozen = re.search(r"Frozen parameters: (.*)", done.stdout)[1]
    assert (re.search(r"\bint8", frozen) is not None) == bool(settings.get("load_in_8bit"))
    assert ("uint8" in frozen) == bool(settings.get("load_in_4bit"))
    assert ("100.00% of all" in done.stdout) == (settings["use_peft"] is False)
    results = json.loads((out / "eval_results.json").read_text())
    assert 0 < results["best"]["eval_loss"] < 20
    assert 0 <= results["best"]["eval_mcq_accuracy"] <= 1
    weights = {file.name for file in (out / "final_model").glob("*.safetensors")}
    assert weights == {"adapter_model.safetensors" if settings["use_peft"] else "model.safetensors"}
    # transformers 4 loads it, and computes the same.
    tokenizer = json.loads((out / "final_model/tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["use_peft"] or "rope_theta" in json.loads((out / "final_model/config.json").read_text())
    for name in ("history.json", "loss.png"):
        assert (out / name).stat().st_size > 100


@pytest.mark.parametrize("recipe", RUNNABLE)
def test_the_model_of_a_recipe_can_be_published(recipe, run_of, succeeds, tmp_path):
    out, _ = run_of(recipe)
    options = ("--repo", "someone/model", "--base_model", "someone/base", "--output_dir", tmp_path, "--dry_run")
    done = succeeds("sft/publish.py", "--model_path", out / "final_model", *options)
    card = (tmp_path / "someone--model/README.md").read_text()
    settings = read(recipe)
    quantised = "8-bit " if settings.get("load_in_8bit") else "4-bit (NF4) " if settings.get("load_in_4bit") else ""
    method = f"{quantised}LoRA" if settings["use_peft"] else "full fine-tune"
    assert f"| method | {method} |" in card
    assert ("adapter_model.safetensors" if settings["use_peft"] else "model.safetensors") in done.stdout


def test_fsdp2_recipe_goes_as_far_as_preflight_because_sharding_needs_gpus(launched_as):
    launch = launched_as(ROOT / "recipes/pmcvqa_fsdp2.yaml")
    assert (launch.kind, launch.fsdp_version) == ("fsdp", 2)
    check_all(resolve(["recipes/pmcvqa_fsdp2.yaml"]).for_world_size(2), launch, planned_hardware("A100-40GB", 2))


def test_16gb_recipe_in_fp16_goes_as_far_as_preflight_and_its_adapters_to_float32(tiny_deepseek):
    """The loss scaler of fp16 exists on GPUs alone; what can be seen here is that it would find no bf16 gradient."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    settings = resolve(["recipes/pmcvqa_16gb.yaml"]).for_world_size(1)
    check_all(settings, Launch(), planned_hardware("T4", 1))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_deepseek), lora_config(settings))
    for parameter in model.parameters():
        if parameter.requires_grad:  # as TRL leaves the adapters of a quantised model
            parameter.data = parameter.data.to(torch.bfloat16)
    assert cast_trained_to_float32(model) == 2 * 7 * 2
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


# What a GPU set-up decides; every other key must be the same in the whole family.
SET_UP = {
    *("dtype", "load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bf16", "fp16"),
    *("per_device_train_batch_size", "activation_checkpointing", "activation_checkpointing_kwargs"),
    *("ddp_find_unused_parameters", "output_dir"),
}
LORA = {"use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}


@pytest.mark.parametrize(("main", "recipe"), [(main, recipe) for main, names in FAMILIES.items() for recipe in names])
def test_the_family_differs_in_its_gpu_setup_alone_unless_the_recipe_says_why(main, recipe):
    main, other = map(read, (main, recipe))
    different = {key for key in main.keys() | other.keys() if main.get(key) != other.get(key)} - SET_UP
    excused = says(recipe).partition("Differs from the family:")[2]
    if "no adapter" in excused:
        different -= LORA
    assert [key for key in sorted(different) if key not in excused] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_first_lines_name_model_hardware_memory_time_and_launch(recipe, launched_as):
    text = says(recipe)
    for word in ("Hardware:", "Memory:", "Time:", "accelerate launch --config_file"):
        assert word in text
    names = r"DeepSeek-R1-Distill-Llama-8B|Qwen3-(VL-)?[48]B|Llama-3.1-8B-Instruct|MedGemma-4B|SmolLM2-135M"
    assert re.match(names, text)
    assert launched_as(ROOT / f"recipes/{recipe}.yaml").processes >= 1


@pytest.mark.parametrize("recipe", [name for name in RECIPES if not name.startswith("quickstart")])
def test_the_memory_in_the_first_lines_is_the_estimate(recipe):
    _, _, parts = peak(ROOT / f"recipes/{recipe}.yaml")
    assert f"Memory:   {sum(parts.values()):.0f} GiB at the peak, estimated" in says(recipe)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_value_that_is_not_plain_has_a_short_why(recipe):
    """Settings that a newcomer would stumble over carry a comment."""
    lines = (ROOT / f"recipes/{recipe}.yaml").read_text().split("\n")
    for key in ("dtype", "max_length", "learning_rate", "activation_checkpointing", "per_device_train_batch_size"):
        (line,) = [line for line in lines if line.startswith(f"{key}:")]
        if not recipe.startswith("quickstart") or key != "per_device_train_batch_size":
            assert "  # " in line, line
