"""Run one command of a benchmark: its output in a file, for so many seconds at most, nothing of it left running.

On a GPU every command is a process of its own, started as a user starts it. A rehearsal, which has no minutes for
imports, forks this process instead, which has the libraries imported (`run_forked`).
"""

import contextlib
import ctypes
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The process for whose sake a command runs; tests/benchmarks/measured.py ends when it is gone.
OWNER = "BENCHMARK_OWNER"


def run_limited(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    seconds: float | None = None,
    until: Path | None = None,
) -> int | None:
    """Exit status of `words`, or None where they took longer than `seconds`, or -9 when `until` was there.

    In both cases the command and its children were killed.
    """
    import psutil

    with open(log, "w", encoding="utf-8") as output:
        streams = {"stdout": output, "stderr": output}
        environment = {**environment, OWNER: str(os.getpid())}
        process = subprocess.Popen(words, cwd=ROOT, env=environment, preexec_fn=die_with_parent, **streams)
    try:
        return _wait(process.poll, seconds, until)
    finally:  # also of Ctrl-C
        if process.poll() is None:
            # Launchers start their workers in sessions of their own, so no group of processes holds them all.
            parent = psutil.Process(process.pid)
            for member in [*parent.children(recursive=True), parent]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def die_with_parent() -> None:
    """Have Linux kill this process when the one that started it is gone, however that ended: it would hold the GPU.

    Of what a launcher starts, tests/benchmarks/measured.py sees to it.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _wait(poll: Callable[[], int | None], seconds: float | None, until: Path | None) -> int | None:
    """What `poll` gives when it gives something; None after `seconds`, -9 as soon as `until` exists."""
    end = None if seconds is None else time.monotonic() + seconds
    while (code := poll()) is None:
        if until and until.exists():
            return -signal.SIGKILL
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(0.02)
    return code


def run_forked(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    seconds: float | None = None,
    until: Path | None = None,
) -> int | None:
    """As `run_limited`, in a fork of this process: the script behind Python and launcher, and what they would set."""
    words, environment = list(words[1:]), dict(environment)
    if words[:2] == ["-m", "accelerate.commands.accelerate_cli"]:
        words, of_launcher = launched(words[3:])
        environment |= of_launcher
    log.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _become(words, {**environment, OWNER: str(os.getppid())}, log)
    ended: list[int] = []

    def poll() -> int | None:
        if not ended:
            pid, status = os.waitpid(child, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(status)] if pid else [])
        return ended[0] if ended else None

    try:
        return _wait(poll, seconds, until)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not ended:
            os.waitpid(child, 0)


def launched(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the script and its words, the variables that the launcher would set) behind `accelerate launch`."""
    import socket

    import yaml

    from sft.training.launch import environment_of

    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    options = dict(zip(words[:at:2], words[1:at:2], strict=True))
    config = yaml.safe_load((ROOT / options["--config_file"]).read_text(encoding="utf-8"))
    config["num_processes"] = int(options.get("--num_processes", config.get("num_processes", 1)))
    variables = environment_of(config)
    if config["distributed_type"] in ("DEEPSPEED", "FSDP", "MULTI_GPU", "MULTI_CPU"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        variables |= {"RANK": "0", "LOCAL_RANK": "0", **address}
    return list(words[at:]), variables


def _become(words: list[str], environment: Mapping[str, str], log: Path) -> None:
    """In a fork: run the script as Python would; never returns."""
    code = 1
    try:
        die_with_parent()
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(ROOT)
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(1)  # makes the pool that a fork lacks, which two threads at once could not
        sys.argv[:] = words
        sys.path[0] = str((ROOT / words[0]).resolve().parent)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def why_failed(log: Path, code: int | None) -> str:
    """Our own words of refusal in a log, else the last line of a traceback, else the last line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    refused = [line for line in lines if line.startswith("error:")]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
    # Launchers add that their child failed.
    raised = [line for line in raised if not re.search("ChildFailedError|CalledProcessError", line)]
    return (refused or raised[-1:] or lines[-1:] or [f"exit status {code}"])[0][:300]
