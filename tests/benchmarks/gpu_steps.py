"""What tests/benchmarks/gpu.py measures, the most important first."""

from dataclasses import dataclass

BF16, EIGHT, SMALL = (f"recipes/{name}.yaml" for name in ("pmcvqa_bf16_lora", "pmcvqa", "pmcvqa_16gb"))
IN_BF16 = "--fp16 no --bf16 yes --dtype bfloat16"
ZERO = "--config_file accelerate_configs/zero{0}.yaml --num_processes 1 recipes/pmcvqa_zero{0}.yaml"
# Five steps show whether a recipe runs, its peak, and its first loss.
FIVE_STEPS = "--max_steps 5 --logging_steps 1"

PARTS = {
    1: "Is the stack right?",
    2: "Does every recipe run?",
    3: "How fast?",
    4: "Against what a user would take instead",
    5: "Evaluation",
    6: "Promises that a CPU could not show",
}
# Recipes that are not run, and why.
NOT_RUN = {
    "pmcvqa_ddp": "each GPU does what recipes/pmcvqa.yaml does on one",
    "llama3_8b": "the computation of recipes/pmcvqa.yaml: the same shape",
    "qwen3_8b": "another model: run it with --probe_steps 20",
    "medgemma_4b": "another model: run it with --probe_steps 20",
}


def base_of(device: dict) -> str:
    """The recipe whose variants are measured: the one for the most memory that a card holds without recomputing."""
    if device["memory"] and tuple(device["capability"]) < (8, 0):  # no bf16
        return SMALL
    return BF16 if not device["memory"] or device["memory"] > 44 else EIGHT if device["memory"] > 20 else SMALL


@dataclass(frozen=True)
class Step:
    """One measurement: the part of the report that it belongs to, its kind, and a contender or another detail.

    Of a `variant` the detail is options, of the recipe that `base_of` names.
    """

    part: int
    kind: str
    what: str = ""

    @property
    def name(self) -> str:
        return f"{self.part} {self.kind} {self.what}".strip()


def runs(*contenders: str) -> list[Step]:
    return [Step(2, "train", contender) for contender in contenders]


def variants(*options: str) -> list[Step]:
    return [Step(3, "variant", option) for option in options]


STEPS = [
    Step(1, "stack"),
    Step(1, "inputs"),
    *runs(BF16, EIGHT, f"{SMALL} {IN_BF16}", SMALL),
    Step(3, "variant"),
    *(Step(3, "train", contender) for contender in (EIGHT, f"{SMALL} {IN_BF16}", SMALL)),
    Step(4, "train", "trl"),
    *variants(
        "--attn_implementation sdpa",
        "--activation_checkpointing yes",
        "--per_device_train_batch_size 4",
        "--lora_dropout 0",
        "--seed 43",  # how far apart two equal runs are
        "--torch_compile yes",  # goes on compiling in steps that are counted
    ),
    Step(3, "variant", "LIGER=1"),
    Step(6, "attention"),
    Step(5, "evaluate"),
    Step(6, "continue"),
    *variants(
        "--attn_implementation flex_attention",
        "--attn_implementation flash_attention_2",
        "--attn_implementation flash_attention_3",
        "--per_device_train_batch_size 1 --max_length 2048 --global_batch_size 4",
        "--per_device_train_batch_size 1 --max_length 4096 --global_batch_size 2",
        "--per_device_train_batch_size 1 --max_length 8192 --global_batch_size 1",
    ),
    *runs(ZERO.format(2), ZERO.format(3), "recipes/pmcvqa_reasoning.yaml"),
    Step(6, "quickstart"),
    Step(6, "zero"),
    Step(4, "train", "plain"),
    Step(4, "train", "llamafactory"),
    *variants(
        "--activation_checkpointing yes --activation_checkpointing_kwargs '{\"every_n_layers\": 2}'",
        "--per_device_train_batch_size 1",
        "--optim adamw_torch",
        "--optim adamw_bnb_8bit",
        "--packing no --per_device_train_batch_size 16 --global_batch_size 112",
        "--activation_offloading yes",
    ),
    Step(3, "train", f"{EIGHT} --activation_checkpointing yes"),
    Step(3, "train", f"{EIGHT} --max_length 4096 --global_batch_size 2"),
    Step(3, "train", f"{SMALL} {IN_BF16} --activation_checkpointing no"),
    *runs(
        "--config_file accelerate_configs/fsdp2.yaml --num_processes 1 recipes/pmcvqa_fsdp2.yaml",
        "--config_file accelerate_configs/zero3.yaml --num_processes 1 recipes/pmcvqa_full_zero3.yaml",
    ),
]
