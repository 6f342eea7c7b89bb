"""How a batch is cut, packed or spread over processes changes the speed of training, not what is learned."""

import itertools
import json
from pathlib import Path

import pytest

# No dropout, whose masks depend on how a batch is cut; float32, whose rounding is far below any real difference.
EXACT = ("--lora_dropout", "0", "--bf16", "no", "--dtype", "float32", "--eval_on_start", "no", "--max_steps", "3")
QUIET = ("--eval_strategy", "no", "--load_best_model_at_end", "no", "--mcq_eval_samples", "0", "--save_strategy", "no")
# Sums in another order differ by rounding: float32 keeps seven digits, and these are sums of thousands of terms.
ROUNDING = 2e-5


def losses(out: Path) -> tuple[list[float], list[float]]:
    """(losses, gradient norms) of every step."""
    rows = [row for row in json.loads((out / "history.json").read_text()) if "loss" in row]
    return [row["loss"] for row in rows], [row["grad_norm"] for row in rows]


@pytest.fixture(scope="module")
def exact(succeeds, toy_options, tmp_path_factory):
    """Train the bf16 recipe exactly, in this process; returns its losses and gradient norms."""

    def run(*options: object) -> tuple[list[float], list[float]]:
        out = tmp_path_factory.mktemp("exact") / "out"
        succeeds("sft/run.py", *toy_options("pmcvqa_bf16_lora"), *EXACT, *QUIET, "--output_dir", out, *options)
        return losses(out)

    return run


@pytest.fixture(scope="module")
def one_by_one(exact):
    """Eight packs a step, one after the other."""
    return exact("--global_batch_size", "8", "--per_device_train_batch_size", "1")


def alike(one: tuple[list[float], list[float]], other: tuple[list[float], list[float]]) -> bool:
    """Whether the losses and the gradient norms of two runs differ by rounding alone."""
    return all(a == pytest.approx(b, rel=ROUNDING) for a, b in zip(one, other, strict=True))


def test_one_pack_eight_times_is_eight_packs_at_once(exact, one_by_one):
    at_once = exact("--global_batch_size", "8", "--per_device_train_batch_size", "8")
    assert len(at_once[0]) == 3
    assert alike(at_once, one_by_one)


def test_one_row_eight_times_is_eight_rows_at_once_without_packing(exact):
    """Rows of different lengths: the loss is an average over tokens, not over rows of rows."""
    options = ("--packing", "no", "--global_batch_size", "8", "--per_device_train_batch_size")
    assert alike(exact(*options, "1"), exact(*options, "8"))


def test_two_processes_under_ddp_are_one(command, toy_options, one_by_one, tmp_path):
    launch = ("accelerate", "launch", "--config_file", "accelerate_configs/ddp.yaml", "--num_processes", "2")
    done = command(
        *(*launch, "sft/run.py", *toy_options("pmcvqa_bf16_lora"), *EXACT, *QUIET, "--output_dir", tmp_path / "out"),
        *("--global_batch_size", "8", "--per_device_train_batch_size", "1"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert alike(losses(tmp_path / "out"), one_by_one)


def test_zero2_and_zero3_train_alike_and_start_where_one_process_and_so_ddp_starts(recipe_run, exact):
    """At the first step the adapters add nothing yet, so that dropout makes no difference to the loss."""
    zero2, zero3 = (losses(recipe_run(name)[0]) for name in ("pmcvqa_zero2", "pmcvqa_zero3"))
    assert zero3[0] == pytest.approx(zero2[0], rel=ROUNDING)
    assert zero3[1] == pytest.approx(zero2[1], rel=1e-3)
    alone = exact("--max_steps", "1", "--global_batch_size", "4")
    assert zero2[0][0] == pytest.approx(alone[0][0], rel=ROUNDING)


def test_adapters_saved_under_zero3_are_complete_and_give_the_logits_of_those_saved_under_zero2(recipe_run):
    import torch
    from safetensors.torch import load_file

    from sft.common.models import load_model

    logits = []
    for name in ("pmcvqa_zero2", "pmcvqa_zero3"):
        checkpoint = recipe_run(name)[0] / "checkpoint-4"
        weights = load_file(checkpoint / "adapter_model.safetensors")
        assert len(weights) == 2 * 7 * 2  # layers, projections, A and B
        assert all(tensor.numel() and tensor.abs().max() > 0 for tensor in weights.values())
        model, tokenizer = load_model(str(checkpoint), "float32")
        ids = torch.tensor([tokenizer("Which stain shows iron?")["input_ids"]])
        with torch.no_grad():
            logits.append(model(ids).logits)
            with model.disable_adapter():
                base = model(ids).logits
    effect = (logits[0] - base).abs().max()
    assert effect > 0
    assert (logits[0] - logits[1]).abs().max() < 0.01 * effect


def test_packed_rows_have_the_losses_per_token_of_rows_alone(tiny_deepseek, prepared, tmp_path):
    import torch
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    from sft.common.models import load_tokenizer

    trainer = SFTTrainer(
        model=str(tiny_deepseek),
        args=SFTConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            packing=True,
            packing_strategy="bfd",
            max_length=256,
            per_device_train_batch_size=4,
            report_to="none",
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        ),
        train_dataset=load_dataset(str(prepared))["train"].select(range(60)).select_columns(["prompt", "completion"]),
        processing_class=load_tokenizer(str(tiny_deepseek)),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.eval()

    def token_losses(**inputs: torch.Tensor) -> torch.Tensor:
        labels = inputs.pop("labels")[0, 1:]
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)[labels != -100]

    ids, labels, positions = (batch[key][0] for key in ("input_ids", "labels", "position_ids"))
    packed = token_losses(input_ids=ids[None], labels=labels[None], position_ids=positions[None])
    starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
    assert len(starts) > 8  # several rows a pack, four packs
    alone = [
        token_losses(input_ids=ids[None, start:end], labels=labels[None, start:end])
        for start, end in itertools.pairwise(starts)
    ]
    assert torch.allclose(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)
