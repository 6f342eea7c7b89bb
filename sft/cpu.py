"""Training on a CPU: the two patches that this project makes to libraries."""


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
    five labelled positions in sixty nearly all of those projections are thrown away (tests/sft/test_cpu.py shows that
    loss and gradients are the same). Read in trl 1.16; other versions stay untouched.
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
