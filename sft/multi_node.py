"""Start a training or an evaluation on several machines: the same command on each, with the machine's own rank.

    python sft/multi_node.py --machine_rank 0 --main_process_ip 10.0.0.1 sft/run.py recipes/pmcvqa_ddp.yaml ...

Machine 0 is the one with the address --main_process_ip. The machines first meet there: a wrong address, port or rank,
or a machine that does not come within a minute, ends the command on every machine in one line. Then it becomes
`accelerate launch`. docs/cluster.md has the steps, docs/slurm.sh is the same for Slurm.

In:  a launch file (accelerate_configs/multi_node.yaml: two machines with eight GPUs each), and what to start.
Out: what is started writes it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sft.common.command import UserError, run, shipped
from sft.training.launch import read_launch_file
from sft.training.rendezvous import interface_of, meet


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, those that are left out as the launch file has them; raises `UserError` for what cannot be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine_rank", type=int, required=True, help="0 for the first machine, 1 for the second, …")
    parser.add_argument("--main_process_ip", required=True, help="address of machine 0, as the others reach it")
    parser.add_argument("--main_process_port", type=int, default=29500, help="free on machine 0 (default: 29500)")
    parser.add_argument("--config_file", type=Path, default=Path("accelerate_configs/multi_node.yaml"))
    parser.add_argument("--num_machines", type=int, help="default: the launch file's")
    parser.add_argument("--num_processes", type=int, help="of all machines together (default: the launch file's)")
    parser.add_argument("-m", "--module", action="store_true", help="COMMAND begins with a module, such as sft.run")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="sft/run.py RECIPE --key value, or sft/evaluate.py …"
    )
    args = parser.parse_args(argv)
    launch = read_launch_file(args.config_file)
    args.num_machines, args.num_processes = (
        args.num_machines or launch.machines,
        args.num_processes or launch.processes,
    )
    if not args.command:
        raise UserError("nothing to start: name sft/run.py and a recipe, or sft/evaluate.py, behind the options")
    if args.num_machines < 1 or args.num_processes % args.num_machines or args.num_processes < 1:
        raise UserError(
            f"--num_processes {args.num_processes} on --num_machines {args.num_machines}: give a multiple, the "
            "number of processes (GPUs) of all machines together"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(f"--machine_rank {args.machine_rank}: number the machines from 0 to {args.num_machines - 1}")
    if not 0 < args.main_process_port < 2**16:
        raise UserError(f"--main_process_port {args.main_process_port}: give a number from 1 to {2**16 - 1}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    rank, host, port = args.machine_rank, args.main_process_ip, args.main_process_port
    print(f"Machine {rank} of {args.num_machines}: waiting for the others at {host}:{port}", flush=True)
    address = meet(host, port, rank, args.num_machines, args.num_processes)
    # Of a host's name gloo takes the address, which on many machines is that of loopback. NCCL looks for itself.
    if interface := interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    words = ["--config_file", shipped(args.config_file), *(["--module"] if args.module else [])]
    for name in ("num_machines", "num_processes", "machine_rank", "main_process_ip", "main_process_port"):
        words += [f"--{name}", getattr(args, name)]
    words = ["-m", "accelerate.commands.accelerate_cli", "launch", *words, *args.command]
    # The same process, which the scheduler signals.
    os.execv(sys.executable, [sys.executable, *map(str, words)])  # noqa: S606


if __name__ == "__main__":
    run(main)
