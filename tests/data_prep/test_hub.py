"""Reading from and publishing to the Hub, against a small server that answers as the Hub does."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
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
    run(*words, source=REPO, refusal=f"train_2.csv of {REPO} cannot be fetched from the Hub")


def parquet_of(rows: int) -> bytes:
    """MedMCQA's columns; the right options are a, b, c, d in turn."""
    keys = dict.fromkeys(("opa", "opb", "opc", "opd"), "")
    content = io.BytesIO()
    options = [{key: f"{key} {i}" for key in keys} for i in range(rows)]
    rows = [{"question": f"Which is {i}?", **cells, "cop": i % 4} for i, cells in enumerate(options)]
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def test_any_data_set_is_read_from_the_hub_as_it_lies_there(run, repo, tmp_path):
    files = {f"data/train-0000{i}-of-00002.parquet": parquet_of(40) for i in (0, 1)}
    repo.commit(files | {"data/test-00000-of-00001.parquet": parquet_of(8), "README.md": b"---\n---\n"}, COMMIT)
    done = run("--revision", COMMIT, source=REPO)
    assert "train.parquet: MedMCQA, Parquet, 2 parts, train" in done.stdout
    report = json.loads((tmp_path / "P/report.json").read_text())
    assert report["read"] == 88
    assert set(report["sources"]) == {"test.parquet", "train.parquet"}


def test_of_several_parts_on_the_hub_one_is_chosen(run, repo, tmp_path):
    repo.commit({f"{part}/train-00000-of-00001.parquet": parquet_of(40) for part in ("en", "es")}, COMMIT)
    words = ("--revision", COMMIT)
    run(*words, source=REPO, refusal=f"{REPO} has several parts: choose one with --config: en, es")
    run(*words, "--config", "fr", source=REPO, refusal=f"--config fr: {REPO} has no such part, but en, es")
    run(*words, "--config", "es", source=REPO)
    assert json.loads((tmp_path / "P/report.json").read_text())["read"] == 40


def test_both_versions_in_one_repository_are_not_mixed(run, repo, sample):
    names = ("train.csv", "test.csv", "test_clean.csv", "train_2.csv", "test_2.csv")
    repo.commit(dict.fromkeys(names, (sample / "train.csv").read_bytes()), COMMIT)
    refusal = "choose one with --format: pmc_vqa_v1, pmc_vqa_v2"
    run("--revision", COMMIT, source=REPO, refusal=refusal)


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
