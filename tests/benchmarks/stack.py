"""Is the stack right? Driver, versions, products in every number type against float32, and their speed.

    python tests/benchmarks/stack.py RESULT.json [SIZE]

SIZE is the side of the matrices (default 8,192 on a GPU, 512 on a CPU). RESULT.json:
    device      name, count, memory (GiB), capability
    versions    of driver, CUDA, Python and packages; None for a package that is not installed
    products    {type: {"error": norm of the difference from float32 by that of float32, "tflops"} or {"failed": why}}
    peak        operations a second: {"data sheet": or None, "product": measured here, in 16 bits where the device can}
"""

import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sft.common.command import first_line, run, write_json
from sft.common.models import cpu_has_bf16
from sft.training.hardware import cpu_name, this_machine

PACKAGES = (
    *("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "deepspeed"),
    *("flash_attn", "flash_attn_3", "liger_kernel", "unsloth", "llamafactory", "lm_eval"),
)
# Operations a second in 16 bits, dense, accumulated in float32, of cards that TRL's table lacks. From NVIDIA's
# architecture papers of Ampere GA102, Ada and RTX Blackwell, and the V100's data sheet.
MORE_PEAKS = {
    r"RTX 3090\b(?! Ti)": 71e12,
    r"RTX 4090\b(?! [DL])": 165.2e12,
    r"RTX 5090\b(?! [DL])": 209.5e12,
    r"V100.*PCIE": 112e12,
    r"V100": 125e12,
}


def data_sheet_peak(gpu: str) -> float | None:
    """Operations a second in bf16, or fp16 of an older card, by the data sheet; None for an unknown card."""
    from trl.trainer.utils import get_peak_flops

    known = get_peak_flops(gpu, "bfloat16") or get_peak_flops(gpu, "float16")
    return known or next((peak for name, peak in MORE_PEAKS.items() if re.search(name, gpu, re.IGNORECASE)), None)


def half_types(device: str) -> list[Any]:
    """The 16-bit types that the device multiplies, the faster one for training first; float32 where it has none."""
    import torch

    if device == "cpu":
        return [torch.bfloat16] if cpu_has_bf16() else [torch.float32]
    bf16 = [torch.bfloat16] if torch.cuda.get_device_capability() >= (8, 0) else []
    return [*bf16, torch.float16]


def seconds_of(work: Callable[[], Any], device: str, times: int = 12) -> float:
    """Median of so many repetitions, the first two left out, each to its end on the device."""
    import torch

    taken = []
    for _ in range(times):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def product_peak(device: str, size: int) -> float:
    """Operations a second of a product of two matrices of this size, in 16 bits where the device has them."""
    import torch

    a, b = (torch.randn(size, size, device=device).to(half_types(device)[0]) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def layers(device: str) -> dict[str, Callable[[Any], tuple[Any, Any]]]:
    """{type: a function of a float32 weight that gives (the layer, its input's type)}, as recipes hold weights."""
    import torch

    half = half_types(device)[0]

    def plain(kind: Any) -> Callable[[Any], tuple[Any, Any]]:
        def filled(weight: Any) -> tuple[Any, Any]:
            layer = torch.nn.Linear(*weight.shape[::-1], bias=False, device="meta", dtype=kind)
            layer.weight = torch.nn.Parameter(weight.to(kind), requires_grad=False)
            return layer, kind

        return filled

    def in_8bit(weight: Any) -> tuple[Any, Any]:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear8bitLt(*weight.shape[::-1], bias=False, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(weight.to("cpu", half), requires_grad=False, has_fp16_weights=False)
        return layer.to(device), half

    def in_nf4(weight: Any) -> tuple[Any, Any]:
        import bitsandbytes as bnb

        layer = bnb.nn.Linear4bit(*weight.shape[::-1], bias=False, compute_dtype=half, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight.to("cpu", half), requires_grad=False, quant_type="nf4")
        return layer.to(device), half

    types = [torch.float32] if half == torch.float32 else [*half_types(device), torch.float32]
    named = {str(kind).removeprefix("torch."): plain(kind) for kind in types}
    return {**named, "8-bit": in_8bit, "NF4": in_nf4}


def products(device: str, size: int) -> dict[str, dict]:
    """Error and speed of a layer in every type, on the same random weight and input; what fails says why."""
    import torch

    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    weight = torch.randn(size, size, device=device) / size**0.5
    inputs = torch.randn(min(size, 4096), size, device=device)
    exact = inputs @ weight.T
    found: dict[str, dict] = {}
    for name, make in layers(device).items():
        try:
            layer, kind = make(weight)
            given = inputs.to(kind)
            with torch.no_grad():
                error = ((layer(given).float() - exact).norm() / exact.norm()).item()
                taken = seconds_of(lambda layer=layer, given=given: layer(given), device)
            found[name] = {"error": error, "tflops": 2 * inputs.numel() * size / taken / 1e12}
        except Exception as error:
            found[name] = {"failed": first_line(error)}
    return found


def versions() -> dict[str, str | None]:
    """Versions of everything that decides what a run computes, and how fast."""
    import subprocess

    import torch

    found: dict[str, str | None] = {"python": platform.python_version(), "CUDA": torch.version.cuda}
    if torch.cuda.is_available():
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            asked = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
            found["driver"] = asked.stdout.splitlines()[0].strip()
        except (OSError, subprocess.SubprocessError, IndexError):
            found["driver"] = None
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 8192 if device == "cuda" else 512
    machine = this_machine()
    measured = product_peak(device, size)
    result = {
        "device": {
            "name": machine.gpu or cpu_name(),
            "count": machine.count,
            "memory": machine.memory,
            "capability": machine.capability,
        },
        "versions": versions(),
        "peak": {"data sheet": data_sheet_peak(machine.gpu) if machine.gpu else None, "product": measured},
        "products": products(device, size),
    }
    write_json(Path(sys.argv[1]), result)


if __name__ == "__main__":
    run(main)
