"""What holds for every command."""

import time

import pytest

COMMANDS = [
    "data_prep/sample.py",
    "data_prep/prepare.py",
    "sft/embedded_model.py",
    "sft/preflight.py",
    "sft/run.py",
    "sft/evaluate.py",
    "sft/compare.py",
    "sft/infer.py",
    "sft/merge.py",
    "sft/publish.py",
    "sft/quickstart.py",
    "tests/benchmarks/train.py",
    "tests/benchmarks/growth.py",
]


@pytest.mark.parametrize("script", COMMANDS)
def test_help_comes_at_once(command, script):
    start = time.perf_counter()
    done = command(script, "--help")
    assert done.returncode == 0
    assert time.perf_counter() - start < 2
    assert len(done.stdout.splitlines()) >= 4
