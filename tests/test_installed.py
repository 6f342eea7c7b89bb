"""`pip install .`: the commands work from any folder, and find the recipes and templates that came with them."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sft.common.command import run_by_name, shipped

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


def test_a_file_that_is_here_comes_before_the_one_that_came_with_the_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("recipes/pmcvqa.yaml")
    assert shipped(name).samefile(ROOT / name)
    name.parent.mkdir()
    name.touch()
    assert shipped(name) == name
    assert shipped(Path("recipes/none.yaml")) == Path("recipes/none.yaml")
