"""A small server that speaks the Hub's HTTP protocol as far as `huggingface_hub` uses it here, and fails on demand.

Repositories, commits with parents, LFS uploads, tags, visibility and tokens are real; Xet storage is turned off, so
that files go by LFS. `Fault`s answer in the place of the server: a status, or a connection that is dropped, before the
request was carried out or after.
"""

import base64
import hashlib
import json
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKENS = {
    "hf_known": {"name": "someone", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": "write"}}},
    "hf_readonly": {"name": "someone", "orgs": [], "auth": {"accessToken": {"role": "read"}}},
    # As for a login in the browser: without a role.
    "hf_oauth": {"name": "someone", "orgs": None, "auth": {"type": "oauth"}},
    "hf_stranger": {"name": "stranger", "orgs": [], "auth": {"accessToken": {"role": "write"}}},
}
KNOWN, READ_ONLY, BY_BROWSER = ({"HF_TOKEN": token} for token in ("hf_known", "hf_readonly", "hf_oauth"))
DROP, DROP_AFTER = "connection dropped before the request was carried out", "connection dropped after it was"


def git_sha(content: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


@dataclass
class Repo:
    """A repository: its files at each commit, newest last."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    licence: str | None = None

    def __post_init__(self) -> None:
        if not self.commits:
            self.commit({".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, files: dict[str, bytes], oid: str | None = None) -> str:
        """Make these the newest files; returns the commit."""
        oid = oid or hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()  # noqa: S324
        self.commits[oid] = files
        return oid

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        """The newest files, without the Hub's own."""
        return {name: content for name, content in self.commits[self.head].items() if name != ".gitattributes"}

    def resolve(self, revision: str) -> str | None:
        commit = self.tags.get(revision, self.head if revision == "main" else revision)
        return commit if commit in self.commits else None


@dataclass
class Fault:
    """Answers `times` requests whose method and path hold these words in its own way."""

    method: str
    path: str
    way: int | str  # HTTP status, DROP or DROP_AFTER
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)

    def is_for(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method == method and self.path in path


class Hub(BaseHTTPRequestHandler):
    """The calls that `huggingface_hub` makes to create, fill, change and read a repository."""

    protocol_version = "HTTP/1.1"
    repos: dict[tuple[str, str], Repo]  # by kind (models, datasets) and id
    blobs: dict[str, bytes]  # LFS, by SHA-256
    faults: list[Fault]
    requests: list[str]  # method and path of every request
    environment: dict[str, str]
    lock: threading.Lock

    def log_message(self, *_: object) -> None:
        pass

    @classmethod
    def model(cls, repo: str) -> Repo:
        return cls.repos["models", repo]

    @classmethod
    def add(cls, kind: str, repo: str, folder: Path, licence: str | None = None) -> str:
        """Put the files of a folder into a new public repository; returns the commit."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        cls.repos[kind, repo] = Repo(False, licence=licence)
        return cls.repos[kind, repo].commit(files)

    def answer(self, status: int, content: bytes | dict | list = b"", **headers: str) -> None:
        """Send a response, unless the connection is to be dropped in its place."""
        if self.silent:
            self.close_connection = True
            return
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def handle_request(self) -> None:
        """Read the request, let a fault answer if there is one for it, or else the server."""
        self.silent = False
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.place, _, _ = urllib.parse.unquote(self.path).partition("?")
        with self.lock:
            self.requests.append(f"{self.command} {self.place}")
            if fault := next((fault for fault in self.faults if fault.is_for(self.command, self.place)), None):
                fault.times -= 1
                self.silent = fault.way in (DROP, DROP_AFTER)
                if fault.way != DROP_AFTER:
                    status = 0 if self.silent else fault.way
                    return self.answer(status, {"error": f"fault {fault.way}"}, **fault.headers)
            return self.respond(body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    @property
    def user(self) -> dict | None:
        return TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def respond(self, body: bytes) -> None:
        words = self.place.strip("/").split("/")
        if self.place == "/api/whoami-v2":
            return self.answer(200, self.user) if self.user else self.answer(401)
        if self.place == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.place == "/api/repos/create":
            return self.create(json.loads(body))
        if words[0] == "lfs":
            return self.lfs(words[1], words[2], body)
        if "info/lfs" in self.place:
            return self.lfs_batch(json.loads(body))
        if words[0] == "api" and len(words) >= 4:
            kind, repo, rest = words[1], "/".join(words[2:4]), words[4:]
        else:
            words = words if words[0] == "datasets" else ["models", *words]
            kind, repo, rest = words[0], "/".join(words[1:3]), words[3:]
        repository = self.repos.get((kind, repo))
        if repository is None or (repository.private and not self.may_write(repo)):
            return self.answer(404 if self.user else 401, X_Error_Code="RepoNotFound")
        if self.command in ("POST", "PUT") and rest[0] != "paths-info" and not self.may_write(repo):
            return self.answer(403, {"error": "you have no right to write here"})
        return self.of_repo(kind, repo, repository, rest, body)

    def may_write(self, repo: str) -> bool:
        owners = [self.user["name"], *(org["name"] for org in self.user["orgs"] or [])] if self.user else []
        return repo.split("/")[0] in owners and self.user["auth"].get("accessToken", {}).get("role") != "read"

    def create(self, wanted: dict) -> None:
        repo = f"{wanted.get('organization') or (self.user or {}).get('name')}/{wanted['name']}"
        if not self.user:
            return self.answer(401)
        if not self.may_write(repo):
            return self.answer(403, {"error": "you have no right to write here"})
        kind = f"{wanted.get('type', 'model')}s"
        url = {"url": f"{self.environment['HF_ENDPOINT']}/{'' if kind == 'models' else kind + '/'}{repo}", "id": repo}
        if (kind, repo) in self.repos:
            return self.answer(409, url)
        self.repos[kind, repo] = Repo(bool(wanted.get("private") or wanted.get("visibility") == "private"))
        return self.answer(200, url)

    def lfs_batch(self, wanted: dict) -> None:
        """Say where the files go that are not here yet."""
        url = f"{self.environment['HF_ENDPOINT']}/lfs"
        for blob in wanted["objects"]:
            if blob["oid"] not in self.blobs:
                blob["actions"] = {step: {"href": f"{url}/{step}/{blob['oid']}"} for step in ("upload", "verify")}
        return self.answer(200, {"transfer": "basic", "objects": wanted["objects"]})

    def lfs(self, step: str, oid: str, body: bytes) -> None:
        """Take the bytes of a file, and say whether they arrived."""
        if step == "upload":
            if hashlib.sha256(body).hexdigest() != oid:
                return self.answer(400, {"error": "other bytes than announced"})
            self.blobs[oid] = body
        return self.answer(200 if oid in self.blobs else 404)

    def of_repo(self, kind: str, repo: str, repository: Repo, rest: list[str], body: bytes) -> None:
        """Whatever concerns one repository: `rest` is the path behind its name."""
        what = rest[0] if rest else "revision"
        if what == "settings":
            repository.private = json.loads(body).get("visibility") == "private"
            return self.answer(200, {})
        if what == "tag":
            tag = json.loads(body)["tag"]
            if tag in repository.tags:
                return self.answer(409, {"error": "the tag exists"})
            repository.tags[tag] = repository.resolve(rest[1])
            return self.answer(200)
        if what == "refs":
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repository.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.head}
            return self.answer(200, {"branches": [main], "converts": [], "tags": tags})
        commit = repository.resolve(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        files = repository.commits[commit]
        if what == "revision":
            card = {"license": repository.licence} if repository.licence else None
            info = {"id": repo, "sha": commit, "private": repository.private, "cardData": card}
            return self.answer(200, {**info, "siblings": [{"rfilename": name} for name in files]})
        if what == "tree":
            tree = [{"type": "file", "path": n, "size": len(c), "oid": git_sha(c)} for n, c in files.items()]
            return self.answer(200, tree)
        if what == "resolve":
            name = "/".join(rest[2:])
            if name not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return self.answer(200, files[name], ETag=f'"{git_sha(files[name])}"', X_Repo_Commit=commit)
        if what == "preupload":
            return self.preupload(files, json.loads(body)["files"])
        if what == "commit":
            return self.commit(kind, repo, repository, [json.loads(line) for line in body.splitlines()])
        return self.answer(404)

    def preupload(self, files: dict[str, bytes], wanted: list[dict]) -> None:
        """Say how each file is to be sent, and which version of it is here."""
        modes = []
        for file in wanted:
            lfs = file["path"].endswith((".safetensors", ".parquet", ".png"))
            here = files.get(file["path"])
            oid = here and (hashlib.sha256(here).hexdigest() if lfs else git_sha(here))
            mode = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            modes.append({**mode, **({"oid": oid} if oid else {})})
        return self.answer(200, {"files": modes})

    def commit(self, kind: str, repo: str, repository: Repo, lines: list[dict]) -> None:
        """Change all files at once, unless the repository has moved on."""
        files = dict(repository.commits[repository.head])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.head):
                return self.answer(412, {"error": "the repository is at another commit"})
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.blobs:
                    return self.answer(400, {"error": "the file was not uploaded"})
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        url = f"{self.environment['HF_ENDPOINT']}/{'' if kind == 'models' else kind + '/'}{repo}/commit/{commit}"
        return self.answer(200, {"commitUrl": url, "commitOid": commit})


def start(home: Path) -> tuple[type[Hub], ThreadingHTTPServer]:
    """A running server and the class that holds its state; `environment` makes a command talk to it."""
    state = {"repos": {}, "blobs": {}, "faults": [], "requests": [], "lock": threading.Lock()}
    handler = type("Handler", (Hub,), state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return handler, server
