"""Files and disks: what is written is complete or not there, and what does not fit is refused."""

import json
import os
import shutil

import pytest

from sft.common.command import GIB, UserError, atomic_write, check_disk, write_json


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
