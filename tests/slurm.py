"""A Slurm of one node on this machine, for tests: Debian's slurmctld, slurmd and munge, everything in one folder.

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge

Nothing of the machine's own Slurm is read or written. The daemons run in the foreground, as root, until the end.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")

# Processes are found by their parents (linuxproc), so that no cgroup is needed, and tasks may be more than cores. The
# node is called localhost because docs/slurm.sh takes a node's name for its address. A job that is queued again waits
# until the credential of its first start has expired, two minutes by default.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SelectTypeParameters=CR_CPU
NodeName=localhost CPUs=8
PartitionName=test Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no Slurm can be started here, or None."""
    if absent := [program for program in PROGRAMS if not which(program)]:
        return f"no {', '.join(absent)}: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge"
    return "Slurm's daemons have to run as root" if os.geteuid() else None


def which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start a Slurm in `folder`; yields the variables that its commands need, once the node is idle."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf, key, munge = folder / "slurm.conf", folder / "munge.key", folder / "munge.socket"
    conf.write_text(CONFIGURATION.format(folder=folder, ports=free_ports(2)))
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    environment = {"SLURM_CONF": str(conf)}
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    daemons = [
        ("munged", "--foreground", "--force", f"--socket={munge}", *files),
        ("slurmctld", "-D", "-f", conf),
        ("slurmd", "-D", "-f", conf, "-N", "localhost"),
    ]
    with contextlib.ExitStack() as stack:
        for program, *words in daemons:
            log = stack.enter_context((folder / f"{program}.log").open("w"))
            process = subprocess.Popen(
                [which(program), *map(str, words)], env={**os.environ, **environment}, stdout=log, stderr=log
            )
            stack.callback(stop, process)
        wait_for(lambda: b"State=IDLE" in shown(environment, "node", "localhost"), folder)
        yield environment
        words = (which("scancel"), "--signal=KILL", "--full", "--user=root")  # whatever a failed test left
        subprocess.run(words, env={**os.environ, **environment}, check=False)


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def shown(environment: dict[str, str], *words: str) -> bytes:
    """What `scontrol show` prints."""
    words = ("scontrol", "--oneliner", "show", *words)
    return subprocess.run(words, env={**os.environ, **environment}, capture_output=True, check=False).stdout


def wait_for(condition, folder: Path, seconds: float = 120) -> None:
    """Wait until a condition holds; fails with the daemons' logs."""
    end = time.monotonic() + seconds
    while not condition():
        logs = "".join(f"{log.name}\n{log.read_text()[-2000:]}\n" for log in folder.glob("*.log"))
        assert time.monotonic() < end, logs
        time.sleep(0.2)
