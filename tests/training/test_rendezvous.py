"""Machines meet before a launch, or say in words why not; a run on two of them is in test_stopping.py."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sft.common.command import UserError
from sft.training.rendezvous import interface_of, lost_processes, meet
from tests.slurm import free_ports


@pytest.fixture
def port():
    return free_ports(1)[0]


def met(port: int, *machines: tuple, host: str = "localhost", seconds: float = 30) -> list[str]:
    """What `meet` returns on each of the machines (rank, machines, processes), or the words of its refusal."""

    def one(machine: tuple) -> str:
        try:
            return meet(host, port, *machine, seconds=seconds)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(len(machines)) as pool:
        return list(pool.map(one, machines))


def test_machines_that_are_told_the_same_meet_and_the_port_is_free_again(port):
    for _ in range(2):
        addresses = met(port, (2, 3, 12), (0, 3, 12), (1, 3, 12))
        assert addresses == ["127.0.0.1"] * 3
    assert met(port, (0, 1, 8)) == ["127.0.0.1"]
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None


@pytest.mark.parametrize(
    ("machines", "words"),
    [
        (((0, 2, 2),), ["machine 1 did not come in 1 s: start the same command there"]),
        (((1, 2, 2),), ["machine 1 reached nothing at localhost:PORT in 1 s (Connection refused): start the same"]),
        (((0, 3, 3), (1, 3, 3), (1, 3, 3)), ["two machines have --machine_rank 1"] * 3),
        (((0, 2, 16), (1, 2, 8)), ["machine 1 was told of 2 machines and 8 processes, machine 0 of 2 and 16"] * 2),
    ],
    ids=["a machine does not come", "nothing at this port", "a rank twice", "other numbers"],
)
def test_machines_that_do_not_meet_say_why_on_each_of_them(port, machines, words):
    said = met(port, *machines, seconds=1 if len(machines) == 1 else 30)
    assert all(part.replace("PORT", str(port)) in line for part, line in zip(words, said, strict=True)), said


def test_another_program_at_the_port_is_not_taken_for_a_machine(port):
    with socket.create_server(("", port)) as other:
        greeter = threading.Thread(target=lambda: other.accept()[0].sendall(b"SSH-2.0-OpenSSH\r\n"))
        greeter.start()
        (said,) = met(port, (1, 2, 2))
        greeter.join()
        assert f"what answers at localhost:{port} is not machine 0 of this run" in said
        (said,) = met(port, (0, 2, 2))
        assert f"port {port} cannot be used on machine 0 (Address already in use)" in said


def test_who_knocks_at_the_port_without_a_greeting_is_ignored(port):
    with ThreadPoolExecutor() as pool:
        machine_0 = pool.submit(met, port, (0, 2, 2))
        while True:
            try:
                with socket.create_connection(("localhost", port)) as scanner:
                    scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
            except OSError:
                continue
        assert met(port, (1, 2, 2)) == ["127.0.0.1"]
        assert machine_0.result() == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--machine_rank", "0", "--main_process_ip", "nowhere.invalid", "sft/run.py"),
            "nowhere.invalid is no address",
        ),
        (("--machine_rank", "0", "--main_process_ip", "192.0.2.1", "sft/run.py"), "must be its own address, one of 1"),
        (("--machine_rank", "2", "--main_process_ip", "localhost", "sft/run.py"), "number the machines from 0 to 1"),
        (("--machine_rank", "0", "--main_process_ip", "localhost"), "nothing to start: name sft/run.py and a recipe"),
        (
            ("--machine_rank", "0", "--main_process_ip", "localhost", "--num_processes", "15", "sft/run.py"),
            "--num_processes 15 on --num_machines 2: give a multiple",
        ),
        (
            ("--machine_rank", "0", "--main_process_ip", "localhost", "--main_process_port", "0", "sft/run.py"),
            "--main_process_port 0: give a number from 1 to 65535",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(refused, options, words):
    assert words in refused("sft/multi_node.py", *options)


def test_a_process_that_is_gone_is_said_in_words_and_other_errors_are_not_touched():
    gone = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41234"
    with pytest.raises(UserError, match=r"another process of this run is gone.*10\.0\.0\.2.*auto"), lost_processes():
        raise RuntimeError(gone)
    with pytest.raises(RuntimeError, match="shapes"), lost_processes():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
