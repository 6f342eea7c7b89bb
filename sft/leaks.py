"""What must not leave this machine: its paths, the names of its users, and tokens.

`without_paths` takes paths out of what a run tells of itself; `find_leaks` looks for all three in a folder that is
about to be published.
"""

import contextlib
import getpass
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What tokens of common services look like.
TOKENS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key (sk-...)": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\bgh[oprsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[\w-]{35}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^/\s:@]+:[^/\s:@]+@",
}
# Variables of the environment whose values are secrets.
SECRET_NAMES = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.IGNORECASE)
# An absolute path, of Linux, macOS or Windows, or one under a home folder; no path of an address, no closing tag.
_PATH = re.compile(
    r"(?:(?<![^\s\"'`(=,:\[])(?:~|/[\w.@+-]+)/[\w.@+-]|\b[A-Za-z]:\\{1,2}Users\b|\b[A-Z]:\\\\\w|file://)[^\s\"'`)\],]*"
)
# Accounts that tell nothing of anybody.
NOBODY = {"root", "user", "users", "ubuntu", "admin", "debian", "jovyan", "docker", "runner", "nobody", "home"}
# Files of words that somebody else chose: of the base model's tokenizer. "/usr" may well be a word.
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"}
TEXTS = {".json", ".yaml", ".yml", ".md", ".txt", ".jinja", ".jsonl", ".csv"}


def is_path(text: str) -> bool:
    """Whether `text` is a path that means something on this machine alone."""
    return bool(re.match(r"[/~]|[A-Za-z]:[\\/]|\.\./", text)) and len(text) > 1


def without_paths(value: Any) -> Any:
    """`value` (as JSON knows it) with every path from outside of the working folder reduced to its last name."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("{"):  # a mapping of a recipe, which its parser carries as text
        try:
            return json.dumps(without_paths(json.loads(value)), ensure_ascii=False)
        except ValueError:
            return value
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_path(value) else value


def known_secrets() -> set[str]:
    """The Hub's token and whatever the environment holds under the name of a secret."""
    from huggingface_hub import get_token

    named = {value for name, value in os.environ.items() if SECRET_NAMES.search(name)}
    return {secret for secret in {*named, get_token() or ""} if len(secret) >= 8 and not Path(secret).exists()}


def user_names() -> set[str]:
    """The names under which this machine knows whoever runs this, unless they are nobody's in particular."""
    names = {Path.home().name, os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    with contextlib.suppress(KeyError, OSError):  # a container without an entry for this user
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in NOBODY}


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of what a file says in words: its lines; of safetensors, the metadata in its header."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="np") as weights:
            yield "metadata", json.dumps(weights.metadata() or {})
    elif file.suffix in TEXTS:
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
            yield f"line {number}", line
    else:
        yield "content", file.read_bytes().decode("latin-1")


def find_leaks(folder: Path, published: tuple[str, ...] = ()) -> list[str]:
    """What in the files of `folder` should stay here: "FILE, PLACE: WHAT", without repeating a secret.

    `published` are names that everybody may know although a user's name may be in them, such as the repository's.
    """
    secrets, users = known_secrets(), user_names()
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        for place, line in _lines(file):
            where = f"{name}, {place}"
            if any(secret in line for secret in secrets):
                found.append(f"{where}: a secret of this environment")
                continue
            found += [f"{where}: {what}" for what, pattern in TOKENS.items() if re.search(pattern, line)]
            if file.name in VOCABULARIES or (file.suffix not in TEXTS and file.suffix != ".safetensors"):
                continue
            if path := _PATH.search(line):
                found.append(f"{where}: the path {path[0][:80]}")
            for known in published:
                line = line.replace(known, "")
            if file.suffix in (".json", ".yaml"):
                found += [
                    f"{where}: the user name {user}" for user in users if re.search(rf"\b{re.escape(user)}\b", line)
                ]
    return found
