"""`pip install .`: the commands work from any folder, and find the recipes and templates that came with them."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sft.common.command import as_named_here, run_by_name, shipped

ROOT = Path(__file__).parents[1]


def entry_points() -> list[str]:
    """The names of the installed commands."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return [line.split(" = ")[0] for line in lines if line]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which the project, and nothing else, was installed from a wheel."""
    folder = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    source = folder / "source"  # a copy: building leaves files beside it
    for part in ("sft", "data_prep", "recipes", "accelerate_configs"):
        shutil.copytree(ROOT / part, source / part)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run((*pip, "wheel", source, *offline, "--wheel-dir", folder / "wheel"), check=True, cwd=folder)
    (wheel,) = (folder / "wheel").glob("*.whl")
    subprocess.run((*pip, "install", wheel, "--no-deps", "--no-index", "--target", folder / "site"), check=True)
    return folder / "site"


def test_the_packages_of_setup_cfg_are_those_that_are_there():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split()) - {"sft.recipes", "sft.accelerate_configs"}
    there = {file.parent for part in ("sft", "data_prep") for file in ROOT.glob(f"{part}/**/__init__.py")}
    assert listed == {str(folder.relative_to(ROOT)).replace("/", ".") for folder in there} | {"data_prep", "sft"}


@pytest.mark.parametrize("name", entry_points())
def test_every_installed_command_is_a_command_of_the_repository(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    try:
        run_by_name()
    except SystemExit as stop:
        assert not stop.code
    shown = capsys.readouterr().out
    assert shown


def test_a_dry_run_far_from_the_clone(installed, tiny_deepseek, few_dev, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    words = ("--model_name_or_path", tiny_deepseek, "--dataset_name", few_dev, "--use_cpu", "yes", "--bf16", "no")
    words += ("--dtype", "float32", "--load_in_8bit", "no", "--max_length", "256", "--dry_run", "yes")
    done = subprocess.run(
        (sys.executable, installed / "bin/pmcvqa-train", "recipes/pmcvqa.yaml", *words),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Nothing was kept.\n")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def far(installed, tmp_path):
    """Run Python with the installed packages, in an empty folder; returns the completed process."""

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": False}
        return subprocess.run((sys.executable, *words), **options)

    return run


def test_a_launch_file_of_the_package_launches_the_installed_module(installed, far):
    launch = ("-m", "accelerate.commands.accelerate_cli", "launch", "--config_file")
    done = far(*launch, installed / "sft/accelerate_configs/cpu.yaml", "-m", "sft.run", "recipes/none.yaml")
    assert f"choose one of {installed}/sft/recipes/*.yaml" in done.stderr


def test_help_and_refusals_name_what_is_there_far_from_the_clone(installed, far):
    shown = far(installed / "bin/pmcvqa-train", "--help").stdout
    assert f"accelerate launch [--config_file {installed}/sft/accelerate_configs/LAUNCH.yaml] -m sft.run" in shown
    assert "a folder written by pmcvqa-prepare" in shown
    evaluate = (installed / "bin/pmcvqa-evaluate", "--model_path", "nobody/none", "--dataset_path", "nowhere")
    assert "prepare one with `pmcvqa-prepare --dataset_path DIR" in far(*evaluate).stderr


def test_names_of_a_clone_are_kept_in_it_and_in_paths(tmp_path, monkeypatch):
    text = "python sft/publish.py --repo X, data_prep/prepare.py, accelerate_configs/ddp.yaml, recipes/pmcvqa.yaml"
    assert as_named_here(text) == text
    monkeypatch.chdir(tmp_path)
    named = f"pmcvqa-publish --repo X, pmcvqa-prepare, {ROOT}/accelerate_configs/ddp.yaml, recipes/pmcvqa.yaml"
    assert as_named_here(text) == named
    path = "/home/jane/sft/run.py, /home/jane/accelerate_configs/ddp.yaml"
    assert as_named_here(path) == path


def test_the_commit_that_pip_installed_from_is_recorded(installed, far):
    look = ("-c", "from sft.training.manifest import git_revision; print(git_revision())")
    assert far(*look).stdout == "None\n"
    (described,) = installed.glob("pmcvqa_sft-*.dist-info")
    # As after `pip install git+https://...`.
    (described / "direct_url.json").write_text('{"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}}')
    assert far(*look).stdout == "0a1b\n"


def test_a_file_that_is_here_comes_before_the_one_that_came_with_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("recipes/pmcvqa.yaml")
    assert shipped(name).samefile(ROOT / name)
    name.parent.mkdir()
    name.touch()
    assert shipped(name) == name
    assert shipped(Path("recipes/none.yaml")) == Path("recipes/none.yaml")
