"""Which part of the code may import which: commands stand above the rooms of `sft`, and `sft.common` below all."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for package in ("data_prep", "sft")
    for file in sorted((ROOT / package).rglob("*.py"))
}
COMMANDS = {module for module, file in SOURCES.items() if '__name__ == "__main__"' in file.read_text(encoding="utf-8")}


def imported(module: str) -> set[str]:
    """The modules of this project that `module` imports, at its top or in a function."""
    names = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import: name the package"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & SOURCES.keys()


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_downwards(module):
    names = imported(module)
    # `infer.py --evaluate` is the evaluation itself, under another name.
    assert names & COMMANDS <= ({"sft.evaluate"} if module == "sft.infer" else set())
    of_sft = {name for name in names if name.startswith("sft.")}
    if module.startswith(("data_prep", "sft.common")):
        assert all(name.startswith("sft.common") for name in of_sft)
    if module.startswith("sft") and module != "sft.quickstart":
        assert not any(name.startswith("data_prep") for name in names)


def test_only_commands_lie_beside_the_rooms():
    assert {module for module in SOURCES if module.startswith("sft.") and module.count(".") == 1} == {
        *(module for module in COMMANDS if module.startswith("sft.")),
        *(f"sft.{room}" for room in ("common", "training", "evaluation", "inference", "publishing")),
    }


def test_the_files_that_launch_two_processes_exist():
    """conftest.py names them, so that two launchers never run at a time; a file that is renamed would fall out."""
    from conftest import LAUNCHING

    assert {file.name for file in (ROOT / "tests").rglob("test_*.py")} >= set(LAUNCHING)
