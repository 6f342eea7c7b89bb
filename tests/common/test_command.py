"""Files and disks: what is written is complete or not there, and what does not fit is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sft.common.command import GIB, UserError, atomic_folder, atomic_write, check_disk, write_json


def test_a_file_takes_its_name_when_it_is_complete_under_a_temporary_name_of_this_process(tmp_path):
    file = tmp_path / "results.json"
    file.write_text("old")
    with atomic_write(file) as temporary:
        assert temporary.parent == tmp_path
        assert str(os.getpid()) in temporary.name.split(".")  # two processes do not write into one file
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_file_that_was_there_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"µ": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"not JSON": object()})
    with pytest.raises(OSError, match="full"), atomic_write(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise OSError("the disk is full")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"µ": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_disk_that_is_too_small_is_refused_with_what_is_needed_and_free(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9 * GIB, 7 * GIB, 2 * GIB))
    folder = tmp_path / "not/yet/there"
    check_disk(folder, 2 * GIB, "it takes", "make room")
    check_disk(folder, 3 * GIB, "it takes", "make room", reclaimed=GIB)
    with pytest.raises(UserError, match=r"^it takes 3\.0 GiB, 2\.0 GiB are free: make room$"):
        check_disk(folder, 3 * GIB, "it takes", "make room")


# A command that prints a marker of DeepSeek, which Latin-1 and ASCII lack, much else, and then a result to a file.
COMMAND = """
import sys
from sft.common.command import outlive_output, run

def main():
    {first}
    print("<\\uff5cUser\\uff5c>", flush=True)
    for line in range(5000):
        print("a line of output")
    print("and of errors", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write("done")

run(main)
"""


@pytest.fixture
def printing(tmp_path):
    """Run `COMMAND` with its output going somewhere; returns (exit status, output, whether it got to its end)."""

    def go(first: str, stdout: object, **environment: str) -> tuple[int, bytes | None, bool]:
        result = tmp_path / "result"
        result.unlink(missing_ok=True)
        words = [sys.executable, "-c", COMMAND.format(first=first), str(result)]
        environment = {**os.environ, **environment}
        done = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, env=environment, check=False)
        assert b"Traceback" not in done.stderr
        return done.returncode, done.stdout, result.exists()

    return go


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "iso-8859-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["Latin-1", "the C locale"],
)
def test_what_a_terminal_has_no_letter_for_is_written_as_an_escape(printing, environment):
    status, output, ended = printing("", subprocess.PIPE, **environment)
    assert (status, ended) == (0, True)
    assert output.startswith(b"<\\uff5cUser\\uff5c>\n")


@pytest.fixture
def broken_pipe():
    """A pipe whose reader is gone, as that of `| head`."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_a_run_outlives_a_reader_that_is_gone_and_another_command_ends_quietly(printing, broken_pipe):
    assert printing("outlive_output()", broken_pipe) == (0, None, True)
    assert printing("", broken_pipe) == (0, None, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_run_outlives_a_log_on_a_full_disk(printing):
    with open("/dev/full", "wb") as full:
        assert printing("outlive_output()", full) == (0, None, True)
        assert printing("", full) == (2, None, False)


def test_nohup_still_keeps_a_command_running_when_its_terminal_is_closed(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with atomic_folder(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "out").is_dir()
