"""The model as it is trained: its attention, the types and counts of its parameters, and two patches for a CPU."""

from collections import Counter
from typing import Any

from sft.training.config import Settings


def complete_arguments(training_args: Any, model_args: Any, settings: Settings) -> None:
    """Set what SFTTrainer is to know beyond the recipe: how to load the model, and that no row is too long."""
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation
        or attention_implementation(training_args.device.type == "cpu", settings.precision),
        **(training_args.model_init_kwargs or {}),
        # Nothing that a model's repository holds is run: no code, no pickle.
        "trust_remote_code": False,
        "use_safetensors": True,
    }
    if not training_args.packing:
        training_args.max_length = None  # no row exceeds it; TRL would look at every row again


def without_deepspeeds_inference_kernels() -> None:
    """Keep DeepSpeed from compiling, at its first start on a CPU, what its inference alone calls.

    That needs a C++ compiler and takes it a minute; training under DeepSpeed talks through gloo in any case.
    """
    import deepspeed
    import deepspeed.ops

    # Only the versions that ask this table before they build (deepspeed/comm/torch.py).
    if deepspeed.__version__.startswith("0.19."):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def score_labelled_positions_only() -> bool:
    """Let TRL's fused LM head score the labelled positions alone on a CPU too; returns whether it was done.

    With Triton, TRL projects only the positions that carry a label onto the vocabulary. Elsewhere it projects all of
    them, because accelerators that compile for a fixed shape would recompile. A CPU does not compile, and with about
    five labelled positions in sixty nearly all of those projections are thrown away. Loss and gradients are the same
    (tests/training/test_model.py). Read in trl 1.16; other versions stay untouched.
    """
    import torch
    import trl
    from packaging.version import Version
    from trl.trainer import utils

    readable = Version("1.16") <= Version(trl.__version__) < Version("1.17") and hasattr(utils, "_use_triton")
    if torch.cuda.is_available() or not readable:
        return False
    # The name decides in `add_fused_lm_head` alone; the kernels hold their own and go on without Triton.
    utils._use_triton = lambda device: True
    return True


def describe_model(model: Any) -> list[str]:
    """Lines that say how many parameters there are by data type, and how many of them are trained.

    The types are the truth about a quantised run: what should be int8 and is not shows here.
    """
    sizes: Counter[str] = Counter()
    trainable: Counter[str] = Counter()
    for parameter in model.parameters():
        # Under ZeRO-3 a parameter is empty here and knows its whole size; packed 4-bit weights count bytes.
        size = getattr(parameter, "ds_numel", parameter.numel())
        (trainable if parameter.requires_grad else sizes)[str(parameter.dtype).removeprefix("torch.")] += size

    def listed(counts: Counter[str]) -> str:
        return ", ".join(f"{name} {count / 1e6:.1f}M" for name, count in counts.most_common()) or "none"

    share = trainable.total() / (trainable.total() + sizes.total())
    return [f"Frozen parameters: {listed(sizes)}", f"Trained parameters: {listed(trainable)} ({share:.2%} of all)"]


def parameter_counts(model: Any) -> dict[str, int]:
    """How many parameters a model has, ``total``, and how many of them are ``trained``."""
    if hasattr(model, "get_nb_trainable_parameters"):  # PEFT's: knows packed 4-bit weights and ZeRO-3's parts
        trained, total = model.get_nb_trainable_parameters()
    else:
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
        trained, total = sum(size for size, grad in sizes if grad), sum(size for size, _ in sizes)
    return {"total": total, "trained": trained}


def attention_implementation(use_cpu: bool, precision: str) -> str:
    """The fastest attention that is installed and that the device can run; all of them keep packed rows apart."""
    import torch
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if use_cpu or precision == "no" or not torch.cuda.is_available():
        return "sdpa"
    capability = torch.cuda.get_device_capability()
    if capability[0] == 9 and is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if capability >= (8, 0) and is_flash_attn_2_available() else "sdpa"


def trained_in_float32(model: Any) -> int:
    """Recast trained parameters to float32; returns how many there were.

    For runs that are not in bf16: TRL keeps the adapters of quantised models in bf16. Their gradients the fp16 loss
    scaler cannot unscale (``_amp_foreach_non_finite_check_and_unscale_cuda not implemented for 'BFloat16'``), and a
    CPU without bfloat16 instructions multiplies them slowly.
    """
    import torch

    recast = [p for p in model.parameters() if p.requires_grad and p.dtype != torch.float32]
    for parameter in recast:
        parameter.data = parameter.data.to(torch.float32)
    return len(recast)
