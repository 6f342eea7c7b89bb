"""What the run computes on: the GPUs of this machine, or GPUs named by the user who plans a run for another one."""

import contextlib
import platform
from dataclasses import dataclass
from pathlib import Path

from sft.common.command import GIB, UserError


@dataclass(frozen=True)
class Hardware:
    """Equal GPUs, or none. `memory` is GiB a GPU; `capability` is CUDA's compute capability."""

    gpu: str | None = None
    count: int = 0
    memory: float = 0.0
    capability: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return f"{self.count} x {self.gpu}, {self.memory:.0f} GiB each" if self.gpu else "CPU"


# GiB that PyTorch reports (a little less than is printed on the box) and CUDA compute capability, from data sheets.
GPUS = {
    "T4": (14.6, (7, 5)),
    "V100-16GB": (15.8, (7, 0)),
    "V100-32GB": (31.7, (7, 0)),
    "RTX 3090": (23.7, (8, 6)),
    "RTX 4080": (15.7, (8, 9)),
    "RTX 4090": (23.5, (8, 9)),
    "A10G": (22.1, (8, 6)),
    "L4": (22.0, (8, 9)),
    "L40S": (44.4, (8, 9)),
    "A100-40GB": (39.4, (8, 0)),
    "A100-80GB": (79.2, (8, 0)),
    "H100-80GB": (79.2, (9, 0)),
    "H200": (139.8, (9, 0)),
}


def this_machine() -> Hardware:
    """The GPUs that this process sees."""
    import torch

    if not torch.cuda.is_available():
        return Hardware()
    gpu = torch.cuda.get_device_properties(0)
    return Hardware(gpu.name, torch.cuda.device_count(), gpu.total_memory / GIB, (gpu.major, gpu.minor))


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):  # Linux alone has the file
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_threads() -> int:
    """Threads that torch computes with by default: one a physical core that this process may use."""
    import torch

    return torch.get_num_threads()


def planned_hardware(gpu: str, count: int) -> Hardware:
    """`count` GPUs of a model in `GPUS`, to plan a run on another machine; raises `UserError` for an unknown one."""
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu} is not known: choose one of {', '.join(GPUS)}")
    return Hardware(gpu, count, *GPUS[gpu])
