"""Reading from and publishing to the Hub, against a small server that answers as the Hub does."""

import json

import pytest

from tests.hub import KNOWN, Repo

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/questions"


@pytest.fixture
def run(command, hub, sample, tmp_path):
    """Run prepare.py against the server."""

    def prepare(*options, source=sample, **environment):
        words = ("data_prep/prepare.py", "--dataset_path", source, "--output_dir", tmp_path / "P", *options)
        return command(*words, **hub.environment, **environment)

    return prepare


def test_a_version_is_read_from_the_hub_at_one_commit(run, hub, sample, prepared, tmp_path):
    files = {name: (sample / name).read_bytes() for name in ("train.csv", "test.csv")}
    hub.repos["datasets", REPO] = Repo(private=False)
    hub.repos["datasets", REPO].commit({**files, "test_clean.csv": files["test.csv"]}, COMMIT)
    hub.repos["datasets", REPO].commit({"train.csv": b"what somebody wrote later"})
    done = run("--format", "pmc_vqa_v1", "--revision", COMMIT, source=REPO)
    assert done.returncode == 0, done.stderr
    splits = json.loads((tmp_path / "P/report.json").read_text())["splits"]
    assert list(splits) == ["train", "dev", "test", "test_clean"]
    for split in ("train", "dev"):  # the same bytes as from the folder
        assert {file.name for file in (tmp_path / "P" / split).iterdir()} == {
            file.name for file in (prepared / split).iterdir()
        }


def test_a_file_that_is_not_on_the_hub_is_named(run, hub, tmp_path):
    hub.repos["datasets", REPO] = Repo(private=False)
    hub.repos["datasets", REPO].commit({"train.csv": b"of another version"}, COMMIT)
    done = run("--format", "pmc_vqa_v2", "--revision", COMMIT, source=REPO)
    assert done.returncode == 2
    assert "cannot be had from the Hub" in done.stderr
    assert "train_2.csv" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "P").exists()


def test_a_branch_is_no_commit(run):
    done = run("--format", "pmc_vqa_v1", "--revision", "main", source=REPO)
    assert done.returncode == 2
    assert "the 40 digits of a commit" in done.stderr


@pytest.mark.parametrize(("options", "private"), [([], True), (["--public"], False)])
def test_the_folder_is_pushed_privately_unless_told_otherwise(run, hub, tmp_path, options, private):
    done = run("--push_to_hub", REPO, *options, **KNOWN)
    assert done.returncode == 0, done.stderr
    pushed = hub.repos["datasets", REPO]
    assert pushed.private == private
    folder = tmp_path / "P"
    on_disk = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}
    assert pushed.files == on_disk
    assert b"hf_known" not in b"".join(pushed.files.values())
    assert "hf_known" not in done.stdout + done.stderr


def test_a_data_set_on_the_hub_is_replaced_only_if_told_so(run, hub, tmp_path):
    there = hub.repos["datasets", REPO] = Repo(private=True)
    there.commit({"train/old.parquet": b"old", "NOTES.md": b"mine"})
    done = run("--push_to_hub", REPO, **KNOWN)
    assert done.returncode == 2
    assert "exists already: pass --overwrite" in done.stderr
    assert there.files == {"train/old.parquet": b"old", "NOTES.md": b"mine"}
    assert not (tmp_path / "P").exists()  # told before the work
    done = run("--push_to_hub", REPO, "--overwrite", **KNOWN)
    assert done.returncode == 0, done.stderr
    assert "train/old.parquet" not in there.files
    assert "train/old.parquet" in there.commits[list(there.commits)[1]]  # history keeps it
    assert there.files["NOTES.md"] == b"mine"


def test_no_connection_is_told_in_one_line(command, sample, tmp_path):
    words = ("--dataset_path", sample, "--output_dir", tmp_path / "P", "--push_to_hub", REPO)
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), **KNOWN}
    done = command("data_prep/prepare.py", *words, **nobody)
    assert done.returncode == 2
    assert "the Hub refuses" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_goes_to_a_public_data_set_by_accident(run, hub):
    hub.repos["datasets", REPO] = Repo(private=False)
    done = run("--push_to_hub", REPO, "--overwrite", **KNOWN)
    assert done.returncode == 2
    assert "is public: pass --public" in done.stderr
    assert not hub.repos["datasets", REPO].files


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        (REPO, "", "not logged in: run `hf auth login`"),
        (REPO, "hf_wrong", "you are not logged in, or the token has expired"),
        (REPO, "hf_readonly", "your token may only read"),
        (REPO, "hf_stranger", "you may write as stranger"),
        ("a/b/c", "hf_known", "give OWNER/NAME"),
    ],
)
def test_who_may_not_push_learns_it_before_the_work(run, repo, token, words, tmp_path):
    done = run("--push_to_hub", repo, HF_TOKEN=token)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "P").exists()
