"""Machines meet before the launchers start, so that a wrong address is said in words, and soon.

torchrun's launchers meet too, but they wait for ten minutes, and then print the stack of their own code.
"""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator

import psutil

from sft.common.command import UserError

# From the start on the first machine to the start on the last, also where people type the commands.
SECONDS = 50.0
GREETING = "pmcvqa-sft"


def meet(host: str, port: int, rank: int, machines: int, processes: int, seconds: float = SECONDS) -> str:
    """Wait until all machines are at machine 0, `host`:`port`; returns this machine's address on the way to it.

    Every machine, machine 0 included, greets machine 0, which answers when all are there or the time is up.

    Raises `UserError`, on every machine that came, if the place is not reached or others do not come, if two machines
    have the same rank, or if they are told different numbers of machines or processes.
    """
    place = f"{host}:{port}"
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        raise UserError(
            f"main_process_ip {host} is no address ({error.strerror}): give the address of machine 0"
        ) from error
    host_here = _Host(port, machines, processes, seconds) if rank == 0 else None
    with _reached(host, port, seconds, rank) as connection:
        connection.sendall(f"{GREETING} {rank} {machines} {processes}\n".encode())
        # Machine 0 may have started a little later, and speaks last.
        answer = _line(connection, time.monotonic() + 2 * seconds)
        address = connection.getsockname()[0]
    if host_here:
        host_here.join()
        address = host_here.address or address
    greeting, _, words = answer.partition(" ")
    if greeting != GREETING:
        raise UserError(f"what answers at {place} is not machine 0 of this run: choose another --main_process_port")
    if words != "go":
        raise UserError(f"machine {rank} of {machines}, at {place}: {words}")
    return address.removeprefix("::ffff:")


def _reached(host: str, port: int, seconds: float, rank: int) -> socket.socket:
    """A connection to machine 0, which may start later; machine 0 reaches itself at once or never."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host, port), timeout=5)
        except OSError as error:
            reason = error.strerror or "no answer"
        if rank == 0:
            here = sorted(
                {a.address for of in psutil.net_if_addrs().values() for a in of if a.family == socket.AF_INET}
            )
            raise UserError(
                f"machine 0 does not reach itself at {host}:{port} ({reason}): --main_process_ip must be its own "
                f"address, one of {', '.join(here)}"
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"machine {rank} reached nothing at {host}:{port} in {seconds:.0f} s ({reason}): start the same "
                "command with --machine_rank 0 on the machine with this address, give every machine the same "
                "--main_process_ip and --main_process_port, and let no firewall between them close the port"
            )
        time.sleep(0.2)


def _line(connection: socket.socket, deadline: float) -> str:
    """The line that the other side sends, or what came of it until it closed or the time was up."""
    received = b""
    with contextlib.suppress(OSError):
        while not received.endswith(b"\n"):
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            if not (part := connection.recv(1024)):
                break
            received += part
    return received.decode(errors="replace").strip()


class _Host(threading.Thread):
    """Machine 0: takes greetings until all machines are there, and answers them all with `go`, or with what is wrong.

    `address` is its own one, as another machine reached it; None if there is no other.
    """

    def __init__(self, port: int, machines: int, processes: int, seconds: float):
        super().__init__(daemon=True)
        self.told, self.deadline, self.address = (machines, processes), time.monotonic() + seconds, None
        self.seconds = seconds
        try:
            self.listener = socket.create_server(("", port))
        except OSError as error:
            raise UserError(
                f"port {port} cannot be used on machine 0 ({os.strerror(error.errno)}): choose another "
                "--main_process_port, the same on all machines"
            ) from error
        self.start()

    def run(self) -> None:
        there: dict[int, socket.socket] = {}
        fault = ""
        while not fault and len(there) < self.told[0] and (left := self.deadline - time.monotonic()) > 0:
            self.listener.settimeout(left)
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                break
            greeting = re.fullmatch(rf"{GREETING} (\d+) (\d+) (\d+)", _line(connection, time.monotonic() + 5))
            if not greeting:  # somebody who looks which ports are open
                connection.close()
                continue
            rank, *told = map(int, greeting.groups())
            if tuple(told) != self.told:
                fault = (
                    f"machine {rank} was told of {told[0]} machines and {told[1]} processes, machine 0 of "
                    f"{self.told[0]} and {self.told[1]}: give all the same --num_machines and --num_processes"
                )
            elif rank in there:
                fault = f"two machines have --machine_rank {rank}: number them from 0 to {self.told[0] - 1}"
            if rank != 0:
                self.address = connection.getsockname()[0]
            there[rank if rank not in there else -1] = connection
        if missing := [str(rank) for rank in range(self.told[0]) if rank not in there]:
            fault = fault or (
                f"machine {', '.join(missing)} did not come in {self.seconds:.0f} s: start the same command there, "
                "with its --machine_rank and the same --main_process_ip and --main_process_port"
            )
        self.listener.close()
        for connection in there.values():
            with contextlib.suppress(OSError):
                connection.sendall(f"{GREETING} {fault or 'go'}\n".encode())
                _line(connection, time.monotonic() + 5)  # the other side closes first, and the port stays free
            connection.close()


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface with `address`."""
    names = (name for name, entries in psutil.net_if_addrs().items() if address in {e.address for e in entries})
    return next(names, None)


# How gloo and NCCL say that a process at the other end is gone, or does not answer.
GONE = re.compile(r"gloo|NCCL|Connection (closed|reset|refused)|Broken pipe|timed? ?out", re.IGNORECASE)


@contextlib.contextmanager
def lost_processes() -> Iterator[None]:
    """Turn what the library of communication raises when another process is gone into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        words = " ".join(str(error).split()).partition(" This is ")[0]  # gloo's guesses follow
        if not GONE.search(words):
            raise
        raise UserError(
            f"another process of this run is gone, or its machine is ({words[:200]}): look at its output. When all "
            "machines can run again, give the same command on each with --resume_from_checkpoint auto"
        ) from error
