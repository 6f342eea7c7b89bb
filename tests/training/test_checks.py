"""What would fail late, or worse, succeed at the wrong thing, is refused at once, in words, with the way out."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from sft.training import hardware
from sft.training.checks import check_all, has_wandb_login
from sft.training.config import resolve

RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))
LAUNCH = "accelerate_configs/{}.yaml"


# Every refusal, triggered once by the command: what the line says of options of the main recipe on an A100 ...
OPTIONS = {
    "quantised full fine-tune": ("--use_peft no", "recipes/pmcvqa_full_zero3.yaml"),
    "8-bit and 4-bit": ("--load_in_4bit yes", "choose one"),
    "bf16 with fp16 weights": ("--dtype float16", "set dtype bfloat16"),
    "test split": ("--dataset_test_split test_clean", "use dev"),
    "save and eval steps": ("--eval_steps 300", "not a multiple of eval_steps 300"),
    "save and eval strategy": ("--save_strategy epoch", "set both to steps"),
    "trained on test": ("--dataset_train_split test_clean", "would train on the test questions"),
    "a revision in the name": ("--model_name_or_path someone/model@abc", "write the revision as model_revision: abc"),
    "another model than the plan's": (
        '--model_init_kwargs {"num_hidden_layers":1}',
        "plan and checks would be of another",
    ),
    "chosen by what is trained": ("--dataset_test_split train", "by the rows that it trains on"),
    "a file for a folder": ("--output_dir README.md", "output_dir README.md is a file"),
    "a token in the recipe": ('--model_init_kwargs {"token":"hf_x"}', "a token in a recipe is a token lost"),
    "nowhere to publish": ("--push_to_hub yes", "set hub_model_id: OWNER/NAME"),
    "a place to publish, and no push": ("--hub_model_id a/b", "push_to_hub is off"),
    "no base to publish": (
        "--push_to_hub yes --hub_model_id a/b --model_name_or_path recipes",
        "is a folder, which nobody else can load",
    ),
    "too few checkpoints": ("--save_total_limit 1", "set it to 2 or more"),
    "selection without questions": ("--mcq_eval_samples 0", "set mcq_eval_samples"),
    "a first evaluation and no other": ("--eval_strategy no --load_best_model_at_end no", "eval_on_start needs"),
    "questions without evaluation": (
        "--eval_on_start no --eval_strategy no --load_best_model_at_end no",
        "mcq_eval_samples needs",
    ),
    "the worst checkpoint": ("--greater_is_better no", "keeps the worst checkpoint"),
    "LoRA on lm_head": ("--lora_target_modules q_proj lm_head", "leave it out"),
    "a dtype left to the model": ("--dtype auto", "write bfloat16, float16 or float32"),
    "leaking packs": ("--packing_strategy wrapped", "use bfd"),
    "no model": ("--model_name_or_path=", "model_name_or_path is not set"),
    "tracker not installed": ("--report_to mlflow", "pip install mlflow"),
    "weights of no checkpoint": ("--resume_weights_only yes", "needs the checkpoint"),
    "the latest weights": ("--resume_weights_only yes --resume_from_checkpoint auto", "needs the checkpoint"),
    "a probe backwards": ("--probe_steps -3", "probe_steps -3: give a number from 0"),
    "price without a probe": ("--price_per_hour 2", "--probe_steps 20"),
    "dry run and probe": ("--dry_run yes --probe_steps 3", "choose one"),
    "an argument of another optimizer": ("--optim_args rank=3", "the optimizer adamw_torch_fused reads no rank"),
    "an argument without a value": ("--optim sgd --optim_args momentum", "write key=value"),
    "a pack without a length": ("--max_length none", "packing needs max_length"),
    "another task": ("--lora_task_type SEQ_CLS", "a language model is trained here"),
    "a metric that nobody measures": ("--metric_for_best_model f1", "is measured by no evaluation here"),
    "the highest loss": ("--metric_for_best_model eval_loss --greater_is_better yes", "keeps the worst checkpoint"),
    "a mask that TRL does not make": ("--assistant_only_loss yes", "completion_only_loss trains the answer alone"),
    "rows as they are": ('--dataset_kwargs {"skip_prepare_dataset":true}', "dataset_kwargs has no effect here"),
    "a column of texts": ("--dataset_text_field question", "the rows that prepare.py writes are messages"),
    "flash attention not installed": ("--attn_implementation flash_attention_2", "needs the package flash_attn or"),
    "a kernel without its package": (
        "--attn_implementation kernels-community/flash-attn2",
        "needs the package kernels",
    ),
    "no such attention": ("--attn_implementation flash", "is not known: leave it out"),
    "no rows at a time": ("--per_device_train_batch_size 0", "give a number from 1"),
    "a learning rate of nothing": ("--learning_rate nan", "learning_rate nan: give a number from"),
    "dropout of everything": ("--lora_dropout 1", "lora_dropout 1.0: give a number from 0, below 1"),
    "a word for a mapping": ("--activation_checkpointing_kwargs fast", "write a mapping"),
    "a list for a mapping": ("--lr_scheduler_kwargs [1]", "lr_scheduler_kwargs [1]: write a mapping"),
    "a removed key": ("--max_seq_length 512", "use max_length"),
    "DeepSpeed in the recipe": ("--deepspeed ds.json", "accelerate_configs/zero3.yaml"),
}
# ... and of (recipe, launch file, GPU, options).
REFUSALS = {
    **{name: ("pmcvqa", None, "A100-80GB", *refusal) for name, refusal in OPTIONS.items()},
    "8-bit + ZeRO-3": ("pmcvqa", "zero3", "A100-80GB", "", "Use recipes/pmcvqa_zero3.yaml"),
    "4-bit + ZeRO-3": ("pmcvqa_16gb", "zero3", "RTX 4090", "", "4-bit weights cannot be divided"),
    "8-bit + FSDP2": ("pmcvqa", "fsdp2", "A100-80GB", "", "Use recipes/pmcvqa_zero3.yaml"),
    "bf16 without the hardware": ("pmcvqa", None, "T4", "", "T4 computes no bf16 (compute capability 7.5"),
    "fp16 and bf16": ("pmcvqa", None, "T4", "--fp16 yes", "choose one"),
    "fp16 with bf16 weights": ("pmcvqa", None, "T4", "--fp16 yes --bf16 no", "set dtype float16"),
    "quantised fp16, DeepSpeed": ("pmcvqa_16gb", "zero2", "T4", "", "adapters in float32"),
    "all fp16 weights": ("pmcvqa_16gb", None, "A100-80GB", "--load_in_4bit no --use_peft no", "set dtype float32"),
    "all bf16 weights": ("pmcvqa_full_zero3", "ddp", "A100-80GB", "", "set dtype float32, or use"),
    "fp16 on a CPU": ("pmcvqa_16gb", None, None, "--use_cpu yes", "fp16 needs a GPU"),
    "no GPU": ("pmcvqa", None, None, "", "add --use_cpu yes"),
    "ZeRO on a CPU": ("pmcvqa_zero2", "zero2", None, "--bf16 no --dtype float32", "pass --ddp_backend gloo"),
    "use_cpu + DeepSpeed": ("pmcvqa_zero2", "zero2", None, "--use_cpu yes", "accelerate silently runs DDP"),
    "use_cpu + FSDP": ("pmcvqa_fsdp2", "fsdp2", None, "--use_cpu yes", "accelerate silently runs DDP"),
    "FSDP without GPUs": ("pmcvqa_fsdp2", "fsdp2", None, "--bf16 no --dtype float32", "add --use_cpu yes"),
    "LoRA + ZeRO-3": ("pmcvqa_zero2", "zero3", "A100-80GB", "--activation_checkpointing yes", "{use_reentrant: true}"),
    "16 GPUs for 8 packs": ("pmcvqa_ddp", "multi_node", "A100-80GB", "", "pass --global_batch_size 16"),
    "an unknown GPU": ("pmcvqa", None, "A1000", "", "choose one of T4"),
    "no such launch file": ("pmcvqa", "nowhere", "A100-80GB", "", "choose one of accelerate_configs"),
}


@pytest.mark.parametrize(("recipe", "launch", "gpu", "options", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refused_by_command(refused, recipe, launch, gpu, options, words):
    launched = ["--config_file", LAUNCH.format(launch)] if launch else []
    named = ["--gpu", gpu] if gpu else []
    line = refused("sft/preflight.py", f"recipes/{recipe}.yaml", *launched, *named, *options.split())
    assert words in line


@pytest.mark.parametrize(
    ("recipe", "text", "words"),
    [
        ("pmcvqa", "'NO'\nmixed_precision: fp16", "says mixed_precision fp16, the recipe bf16"),
        ("pmcvqa", "FSDP\nfsdp_config: {fsdp_version: 1}", "8-bit weights cannot be divided"),
        ("pmcvqa_zero3", "DEEPSPEED\ndeepspeed_config: {zero_stage: 3}", "zero3_save_16bit_model: true"),
        (
            *("pmcvqa_zero2", "DEEPSPEED\ndeepspeed_config: {zero_stage: 2, gradient_accumulation_steps: 3}"),
            "fixes gradient_accumulation_steps at 3, the recipe at 8: write auto",
        ),
    ],
    ids=["precision of launch file and recipe", "8-bit + FSDP1", "ZeRO-3 that saves only its parts", "accumulation"],
)
def test_a_launch_file_that_does_not_fit_the_recipe_is_refused(refused, tmp_path, recipe, text, words):
    file = tmp_path / "own.yaml"
    file.write_text(f"distributed_type: {text}")
    assert words in refused("sft/preflight.py", f"recipes/{recipe}.yaml", "--config_file", file, "--gpu", "A100-80GB")


def test_lora_under_zero3_is_refused_too_where_recomputing_is_on_by_default(refused, tmp_path):
    """TRL recomputes activations unless told not to."""
    lines = Path("recipes/pmcvqa_zero3.yaml").read_text(encoding="utf-8").splitlines()
    recipe = tmp_path / "own.yaml"
    recipe.write_text("\n".join(line for line in lines if not line.startswith("activation_checkpointing")))
    line = refused("sft/preflight.py", recipe, "--config_file", LAUNCH.format("zero3"), "--gpu", "A100-80GB")
    assert "{use_reentrant: true}" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lr_scheduler_type cosine_with_min_lr", "min_lr"),
        ('--lr_scheduler_kwargs {"a":1}', "unexpected keyword argument"),
        ("--optim galore_adamw --optim_target_modules q_proj --report_to nobody", "nobody is not supported"),
        ("--optim adamw_apex_fused", "apex"),
        ("--bnb_4bit_quant_storage x --load_in_8bit no --load_in_4bit yes", "bnb_4bit_quant_storage"),
        ("--dataloader_persistent_workers yes", "num_workers"),
        ("--torch_compile_backend fast", "is not a valid DynamoBackend"),
    ],
)
@pytest.mark.parametrize("script", ["sft/preflight.py", "sft/run.py"])
def test_what_the_libraries_would_refuse_after_loading_is_refused_before(
    refused, tiny_deepseek, few_dev, tmp_path, monkeypatch, script, options, words
):
    import sft.training.trial  # noqa: F401  (or it would import None in place of the function, and keep it)

    monkeypatch.setattr("sft.training.model.load_trainer", None)
    where = ("--gpu", "A100-80GB") if "preflight" in script else ("--use_cpu", "yes")
    options = ("--output_dir", tmp_path / "out", *options.split())
    line = refused(script, "recipes/pmcvqa.yaml", *where, *tiny_options(tiny_deepseek, few_dev), *options)
    assert words in line
    assert not (tmp_path / "out").exists()


def tiny_options(model: Path, data: Path) -> tuple:
    return "--model_name_or_path", model, "--dataset_name", data


@pytest.mark.parametrize(
    ("environment", "netrc", "has"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": "0" * 40}, "", True),
        ({"WANDB_MODE": "offline"}, "", True),
        ({}, "machine api.wandb.ai login user password x", True),
        ({"WANDB_BASE_URL": "https://wandb.example"}, "machine api.wandb.ai login user password x", False),
    ],
)
def test_a_login_of_wandb_is_a_key_a_line_of_netrc_or_not_needed(monkeypatch, tmp_path, environment, netrc, has):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"NETRC": str(tmp_path / "netrc")}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(netrc)
    assert has_wandb_login() == has


def test_a_template_by_any_name_is_read_and_a_folder_is_refused(refused, succeeds, tiny_deepseek, few_dev, tmp_path):
    file = tmp_path / "template.txt"
    shutil.copyfile("recipes/templates/deepseek_r1.jinja", file)
    words = ("sft/preflight.py", "recipes/pmcvqa.yaml", "--gpu", "A100-80GB", *tiny_options(tiny_deepseek, few_dev))
    named, empty = (succeeds(*words, "--chat_template_path", name).stdout for name in (file, ""))
    assert named == empty.replace("the model's own", str(file))  # the tiny model's own is the same
    assert "is a folder: name a file" in refused(*words, "--chat_template_path", tiny_deepseek)


@pytest.mark.filterwarnings("ignore:`pad_token` is deprecated")
@pytest.mark.parametrize("key", ["eos_token", "pad_token"])
def test_a_token_of_the_recipe_must_be_one_of_the_vocabulary(refused, tiny_deepseek, few_dev, key):
    words = ("sft/preflight.py", "recipes/pmcvqa.yaml", "--gpu", "A100-80GB", *tiny_options(tiny_deepseek, few_dev))
    assert f"{key} <|nobody|> is not a token of" in refused(*words, f"--{key}", "<|nobody|>")


def test_a_launch_that_compiles_says_so_in_the_plan(succeeds, tiny_deepseek, few_dev, tmp_path):
    file = tmp_path / "default_config.yaml"
    file.write_text("distributed_type: 'NO'\ndynamo_config: {dynamo_backend: INDUCTOR}")
    words = ("sft/preflight.py", "recipes/pmcvqa.yaml", "--gpu", "A100-80GB", *tiny_options(tiny_deepseek, few_dev))
    assert (
        "torch.compile (inductor), because the launch file says so" in succeeds(*words, "--config_file", file).stdout
    )
    assert "because the recipe says so" in succeeds(*words, "--torch_compile_mode", "default").stdout
    assert "torch.compile" not in succeeds(*words).stdout


@pytest.mark.parametrize("script", ["sft/preflight.py", "sft/run.py"])
def test_several_gpus_without_a_launcher_are_refused_with_the_launcher(monkeypatch, refused, script):
    monkeypatch.setattr(hardware, "this_machine", lambda: hardware.planned_hardware("A100-80GB", 8))
    line = refused(script, "recipes/pmcvqa.yaml")
    assert "accelerate_configs/ddp.yaml --num_processes 8" in line
    assert "CUDA_VISIBLE_DEVICES=0" in line


def test_more_processes_than_gpus_are_refused_with_the_number_to_pass(monkeypatch, refused):
    monkeypatch.setattr(hardware, "this_machine", lambda: hardware.planned_hardware("A100-80GB", 1))
    line = refused("sft/preflight.py", "recipes/pmcvqa_ddp.yaml", "--config_file", LAUNCH.format("ddp"))
    assert "starts 2 processes on a machine with 1 GPU(s): pass --num_processes 1" in line


def test_checkpoints_that_do_not_fit_on_the_disk_are_refused(monkeypatch, refused, embedded_model, prepared, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6))
    line = refused(
        *("sft/preflight.py", "recipes/quickstart.yaml", "--model_name_or_path", embedded_model),
        *("--dataset_name", prepared, "--output_dir", tmp_path / "out"),
    )
    assert "lower save_total_limit or choose another disk" in line
    assert "4 checkpoints" in line  # two kept, one being written, the final model


def test_a_completion_that_would_be_cut_is_refused(refused, tiny_deepseek, prepared):
    line = refused(
        *("sft/preflight.py", "recipes/pmcvqa.yaml", "--gpu", "A100-40GB", "--model_name_or_path", tiny_deepseek),
        *("--dataset_name", prepared, "--max_length", "64"),
    )
    assert "their answers would be cut: set max_length to 108" in line


def test_the_plan_states_what_will_run(succeeds, tiny_deepseek, prepared):
    done = succeeds(
        *("sft/preflight.py", "recipes/pmcvqa_zero2.yaml", "--config_file", LAUNCH.format("zero2")),
        *("--gpu", "A100-40GB", "--num_processes", "4"),
        *("--model_name_or_path", tiny_deepseek, "--dataset_name", prepared),
    )
    rows = json.loads((prepared / "report.json").read_text())["splits"]["train"]
    tokens = int(re.search(r"([\d,]+) tokens an epoch", done.stdout)[1].replace(",", ""))
    # Full packs, batches of four, and two of them a step.
    steps = math.ceil(math.ceil(math.ceil(tokens / 1024) / 4) / 2)
    for words in (
        "Launch: DeepSpeed ZeRO-2, 4 processes; 4 x A100-40GB, 39 GiB each",
        "Precision: bf16",
        "1 packs x 4 process(es) x 2 accumulated = 8 packs a step",
        *(f"Data: {rows} rows, ", ", longest row 108 tokens, packs of 1024"),
        f"about {steps} an epoch, {3 * steps} in all",
        "Trained: 32,768 of 1,131,328 parameters (2.90%)",
        *("Peak memory, estimated:", "weights", "logits"),
    ):
        assert words in done.stdout


def test_more_memory_than_the_gpu_has_is_warned_of(succeeds, embedded_model, prepared):
    done = succeeds(
        *("sft/preflight.py", "recipes/quickstart.yaml", "--gpu", "T4", "--use_cpu", "no", "--bf16", "no"),
        *("--model_name_or_path", embedded_model, "--dataset_name", prepared, "--dtype", "float32"),
        *("--per_device_train_batch_size", "512"),
    )
    assert "WARNING: that is more than the 15 GiB of T4" in done.stdout


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_passes_under_the_launch_and_hardware_that_it_names(path, launched_as):
    launch = launched_as(path)
    gpu = {"pmcvqa_16gb": "T4", "pmcvqa_vl_16gb": "L4"}.get(path.stem, "A100-80GB")
    settings = resolve([str(path)]).for_world_size(launch.processes)
    check_all(settings, launch, hardware.planned_hardware(gpu, launch.processes))
    assert settings.report_to == "none"
    assert settings.chat_template_path is None or (path.parents[1] / settings.chat_template_path).is_file()
    assert settings.dataset_test_split == "dev"
