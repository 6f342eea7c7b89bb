"""What holds for every command."""

import time

import pytest

OF_SFT = (
    "embedded_model",
    "preflight",
    "run",
    "multi_node",
    "evaluate",
    "compare",
    "infer",
    "merge",
    "publish",
    "quickstart",
)
COMMANDS = [
    *("data_prep/sample.py", "data_prep/prepare.py", "data_prep/overlap.py", *(f"sft/{name}.py" for name in OF_SFT)),
    *(f"tests/benchmarks/{name}.py" for name in ("train", "growth", "gpu")),
]


@pytest.mark.parametrize("script", COMMANDS)
def test_help_comes_at_once(command, script):
    start = time.perf_counter()
    done = command(script, "--help")
    assert done.returncode == 0
    assert time.perf_counter() - start < 2
    assert len(done.stdout.splitlines()) >= 4
