"""Reading from and publishing to the Hub, against a small server that answers as the Hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/questions"
KNOWN = {"HF_TOKEN": "hf_known"}


class Hub(BaseHTTPRequestHandler):
    """The handful of calls that `huggingface_hub` makes to download a file and to push a folder."""

    files: dict[str, bytes]  # at COMMIT
    repos: dict[str, dict[str, bytes]]  # what was pushed
    private: dict[str, bool]
    environment: dict[str, str]

    def log_message(self, *_):
        pass

    def answer(self, status: int, content: bytes | dict = b"", **headers: str) -> None:
        content = json.dumps(content).encode() if isinstance(content, dict | list) else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        place = self.path.partition("?")[0]
        if place == "/api/whoami-v2":
            known = self.headers.get("Authorization") == "Bearer hf_known"
            return self.answer(200, {"name": "someone", "type": "user"}) if known else self.answer(401)
        if place.startswith("/datasets/") and f"/resolve/{COMMIT}/" in place:
            name = place.split(f"/resolve/{COMMIT}/")[1]
            if name in self.files:
                return self.answer(200, self.files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)
        if place.startswith("/api/datasets/"):
            repo = "/".join(place.split("/")[3:5])
            if repo in self.repos and "/tree/" in place:
                tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.repos[repo]]
                return self.answer(200, tree)
            if repo in self.repos:
                siblings = [{"rfilename": name} for name in self.repos[repo]]
                return self.answer(
                    200, {"id": repo, "sha": COMMIT, "siblings": siblings, "private": self.private[repo]}
                )
        return self.answer(404, X_Error_Code="RepoNotFound" if "/api/" in place else "EntryNotFound")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            if repo in self.repos:
                return self.answer(409, {"url": f"{self.environment['HF_ENDPOINT']}/datasets/{repo}"})
            self.repos[repo], self.private[repo] = {}, wanted.get("private") or wanted.get("visibility") == "private"
            return self.answer(200, {"url": f"{self.environment['HF_ENDPOINT']}/datasets/{repo}", "id": repo})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer(200, {"files": files})
        if "/commit/" in self.path:
            url = self.environment["HF_ENDPOINT"]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.repos[repo][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del self.repos[repo][value["path"]]
            return self.answer(200, {"commitUrl": f"{url}/datasets/{repo}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer(404)


@pytest.fixture
def hub(tmp_path):
    """A running server; `environment` makes a command talk to it."""
    handler = type("Handler", (Hub,), {"files": {}, "repos": {}, "private": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(command, hub, sample, tmp_path):
    """Run prepare.py against the server."""

    def prepare(*options, source=sample, **environment):
        words = ("data_prep/prepare.py", "--dataset_path", source, "--output_dir", tmp_path / "P", *options)
        return command(*words, **hub.environment, **environment)

    return prepare


def test_a_version_is_read_from_the_hub_at_one_commit(run, hub, sample, prepared, tmp_path):
    hub.files |= {name: (sample / name).read_bytes() for name in ("train.csv", "test.csv")}
    hub.files["test_clean.csv"] = hub.files["test.csv"]
    done = run("--format", "pmc_vqa_v1", "--revision", COMMIT, source=REPO)
    assert done.returncode == 0, done.stderr
    splits = json.loads((tmp_path / "P/report.json").read_text())["splits"]
    assert list(splits) == ["train", "dev", "test", "test_clean"]
    for split in ("train", "dev"):  # the same bytes as from the folder
        assert {file.name for file in (tmp_path / "P" / split).iterdir()} == {
            file.name for file in (prepared / split).iterdir()
        }


def test_a_file_that_is_not_on_the_hub_is_named(run, tmp_path):
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
    assert hub.private == {REPO: private}
    folder = tmp_path / "P"
    on_disk = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}
    pushed = {name: content for name, content in hub.repos[REPO].items() if name != ".gitattributes"}
    assert pushed == on_disk
    assert b"hf_known" not in b"".join(pushed.values())
    assert "hf_known" not in done.stdout + done.stderr


def test_a_data_set_on_the_hub_is_replaced_only_if_told_so(run, hub, tmp_path):
    hub.repos[REPO], hub.private[REPO] = {"train/old.parquet": b"old", "NOTES.md": b"mine"}, True
    done = run("--push_to_hub", REPO, **KNOWN)
    assert done.returncode == 2
    assert "exists already: pass --overwrite" in done.stderr
    assert hub.repos[REPO] == {"train/old.parquet": b"old", "NOTES.md": b"mine"}
    assert not (tmp_path / "P").exists()  # told before the work
    done = run("--push_to_hub", REPO, "--overwrite", **KNOWN)
    assert done.returncode == 0, done.stderr
    assert "train/old.parquet" not in hub.repos[REPO]
    assert hub.repos[REPO]["NOTES.md"] == b"mine"


def test_no_connection_is_told_in_one_line(command, sample, tmp_path):
    words = ("--dataset_path", sample, "--output_dir", tmp_path / "P", "--push_to_hub", REPO)
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), **KNOWN}
    done = command("data_prep/prepare.py", *words, **nobody)
    assert done.returncode == 2
    assert "the Hub refuses" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_goes_to_a_public_data_set_by_accident(run, hub):
    hub.repos[REPO], hub.private[REPO] = {}, False
    done = run("--push_to_hub", REPO, "--overwrite", **KNOWN)
    assert done.returncode == 2
    assert "is public: pass --public" in done.stderr
    assert not hub.repos[REPO]


@pytest.mark.parametrize(
    ("repo", "token", "words"),
    [
        (REPO, "", "not logged in: run `hf auth login`"),
        (REPO, "hf_wrong", "the Hub refuses"),
        ("a/b/c", "hf_known", "give OWNER/NAME"),
    ],
)
def test_who_may_not_push_learns_it_before_the_work(run, repo, token, words, tmp_path):
    done = run("--push_to_hub", repo, HF_TOKEN=token)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "P").exists()
