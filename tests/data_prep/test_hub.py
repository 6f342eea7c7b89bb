"""Reading from and publishing to the Hub, against a small server that answers as the Hub does."""

import json

import pytest

from tests.hub import KNOWN, Repo

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/questions"


@pytest.fixture
def run(command, hub, sample, tmp_path):
    """Run prepare.py against the server. With `refusal`, it must refuse with these words, and leave nothing."""

    def prepare(*options, source=sample, refusal="", **environment):
        words = ("data_prep/prepare.py", "--dataset_path", source, "--output_dir", tmp_path / "P", *options)
        done = command(*words, **{**hub.environment, **environment})
        assert "Traceback" not in done.stderr
        assert done.returncode == (2 if refusal else 0), done.stderr
        assert refusal in done.stderr
        assert (tmp_path / "P").exists() == (not refusal)
        return done

    return prepare


@pytest.fixture
def repo(hub):
    """A public data set on the server, empty."""
    hub.repos["datasets", REPO] = Repo(private=False)
    return hub.repos["datasets", REPO]


def test_a_version_is_read_from_the_hub_at_one_commit(run, repo, sample, prepared, tmp_path):
    files = {name: (sample / name).read_bytes() for name in ("train.csv", "test.csv")}
    repo.commit({**files, "test_clean.csv": files["test.csv"]}, COMMIT)
    repo.commit({"train.csv": b"what somebody wrote later"})
    run("--format", "pmc_vqa_v1", "--revision", COMMIT, source=REPO)
    splits = json.loads((tmp_path / "P/report.json").read_text())["splits"]
    assert list(splits) == ["train", "dev", "test", "test_clean"]
    for split in ("train", "dev"):  # the same bytes as from the folder
        assert {file.name for file in (tmp_path / "P" / split).iterdir()} == {
            file.name for file in (prepared / split).iterdir()
        }


def test_a_file_that_is_not_on_the_hub_is_named(run, repo):
    repo.commit({"train.csv": b"of another version"}, COMMIT)
    words = ("--format", "pmc_vqa_v2", "--revision", COMMIT)
    run(*words, source=REPO, refusal=f"train_2.csv of {REPO} cannot be had from the Hub")


def test_a_branch_is_not_a_commit(run):
    run("--format", "pmc_vqa_v1", "--revision", "main", source=REPO, refusal="the 40 digits of a commit")


@pytest.mark.parametrize(("options", "private"), [([], True), (["--public"], False)])
def test_the_folder_is_pushed_privately_without_public(run, hub, tmp_path, options, private):
    done = run("--push_to_hub", REPO, *options, **KNOWN)
    pushed = hub.repos["datasets", REPO]
    assert pushed.private == private
    folder = tmp_path / "P"
    on_disk = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}
    assert pushed.files == on_disk
    assert b"hf_known" not in b"".join(pushed.files.values())
    assert "hf_known" not in done.stdout + done.stderr


def test_a_data_set_on_the_hub_is_replaced_only_with_overwrite(run, repo):
    repo.private = True
    repo.commit({"train/old.parquet": b"old", "NOTES.md": b"mine"})
    run("--push_to_hub", REPO, refusal="exists already: pass --overwrite", **KNOWN)
    assert repo.files == {"train/old.parquet": b"old", "NOTES.md": b"mine"}
    run("--push_to_hub", REPO, "--overwrite", **KNOWN)
    assert "train/old.parquet" not in repo.files
    assert "train/old.parquet" in repo.commits[list(repo.commits)[1]]  # history keeps it
    assert repo.files["NOTES.md"] == b"mine"


def test_a_missing_connection_is_reported_in_one_line(run):
    run("--push_to_hub", REPO, refusal="the Hub refuses", HF_ENDPOINT="http://127.0.0.1:9", **KNOWN)


def test_nothing_goes_to_a_public_data_set_by_accident(run, repo):
    run("--push_to_hub", REPO, "--overwrite", refusal="is public: pass --public", **KNOWN)
    assert not repo.files


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        (REPO, "", "not logged in: run `hf auth login`"),
        (REPO, "hf_wrong", "you are not logged in, or the token has expired"),
        (REPO, "hf_readonly", "your token may only read"),
        (REPO, "hf_stranger", "you may write as stranger"),
        ("a/b/c", "hf_known", "give OWNER/NAME"),
    ],
)
def test_who_may_not_push_learns_it_before_the_work(run, name, token, words):
    run("--push_to_hub", name, refusal=words, HF_TOKEN=token)
