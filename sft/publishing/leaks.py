"""Find what must not leave this machine in a folder that is to be published: paths, names of users, and tokens."""

import contextlib
import getpass
import json
import os
import re
from pathlib import Path
from typing import Any

# What tokens of common services look like.
TOKEN_PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key (sk-...)": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\bgh[oprsu]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[\w-]{35}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"://[^/\s:@]+:[^/\s:@]+@|://[^/\s:@]{12,}@",
}
# Variables of the environment whose values are secrets.
SECRET_NAMES = re.compile(r"(?i)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASS|PWD|CREDENTIAL|(?:^|_)PAT)S?(?:_|$)")
# An absolute path, of Linux, macOS or Windows, or one under a home folder; no path of an address, no closing tag.
LOCAL_PATH = (
    r"(?:(?<![\w./<~])(?:~|/[\w.@+-]+)/[\w.@+-]|\b[A-Za-z]:\\{1,2}Users\b|\b[A-Z]:\\\\\w|file://)[^\s\"'`)\],]*"
)
# Accounts that do not identify a person.
GENERIC_ACCOUNTS = {
    *("root", "user", "users", "ubuntu", "admin", "debian", "jovyan", "docker", "runner", "nobody", "home", "vscode"),
    # ... and names that are also values in our own files.
    *("train", "dev", "test", "data", "text", "letter", "steps", "epoch", "best", "adapter", "model", "lora", "none"),
}
# Files of words that somebody else chose: of the base model's tokenizer. "/usr" may well be a word.
VOCABULARY_FILES = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model"}
TEXT_SUFFIXES = {".json", ".yaml", ".yml", ".md", ".txt", ".jinja", ".jsonl", ".csv"}


def known_secrets() -> set[str]:
    """The Hub's token and whatever the environment holds under the name of a secret."""
    from huggingface_hub import get_token

    named = {value for name, value in os.environ.items() if SECRET_NAMES.search(name)}
    return {secret for secret in {*named, get_token() or ""} if len(secret) >= 8 and not Path(secret).exists()}


def user_names() -> set[str]:
    """The account names of the user on this machine, without those of `GENERIC_ACCOUNTS`."""
    home = Path.home()
    names = {os.environ.get("USER", ""), os.environ.get("LOGNAME", "")}
    names |= {home.name} if home.parent.name in ("home", "Users") else set()
    with contextlib.suppress(KeyError, OSError):  # a container without an entry for this user
        names.add(getpass.getuser())
    return {name for name in names if len(name) > 2 and name.lower() not in GENERIC_ACCOUNTS}


def values_of(file: Path, text: str) -> str:
    """The text of a JSON or YAML file without its keys, which are words of the programs that wrote it."""
    if file.suffix != ".json":
        return re.sub(r"^\s*[\w-]+:", "", text, flags=re.MULTILINE)

    def leaves(value: Any) -> list[str]:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [value] if isinstance(value, str) else [leaf for item in items for leaf in leaves(item)]

    try:
        return "\n".join(leaves(json.loads(text)))
    except ValueError:
        return text


def text_of(file: Path) -> str:
    """The text in a file; of safetensors, the metadata in the header."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="np") as weights:
            return json.dumps(weights.metadata() or {})
    if file.suffix in TEXT_SUFFIXES:
        return file.read_text(encoding="utf-8", errors="replace")
    return file.read_bytes().decode("latin-1")


def find_leaks(folder: Path, published: tuple[str, ...] = ()) -> list[str]:
    """What in the files of `folder` must not be published: "FILE, line N: WHAT", without repeating a secret.

    `published` are ids on the Hub, the first that of the repository: everybody may know the names in them.
    """
    patterns = dict(TOKEN_PATTERNS)
    if secrets := known_secrets():
        patterns["a secret of this environment"] = "|".join(map(re.escape, secrets))
    owner = published[0].split("/")[0].lower() if published else ""
    users = [name for name in user_names() if name.lower() != owner]
    leaks = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        text, name = text_of(file), file.relative_to(folder)
        is_vocabulary = file.name in VOCABULARY_FILES
        has_paths = not is_vocabulary and file.suffix in (*TEXT_SUFFIXES, ".safetensors")
        for what, pattern in (patterns | {"the path": LOCAL_PATH} if has_paths else patterns).items():
            for match in re.finditer(pattern, text):
                shown = f" {match[0][:80]}" if what == "the path" else ""
                leaks.append(f"{name}, line {text.count(chr(10), 0, match.start()) + 1}: {what}{shown}")
        if not is_vocabulary and file.suffix in (".json", ".yaml"):
            values = values_of(file, text)
            for known in published:
                values = values.replace(known, "")
            for user in users:
                if re.search(rf"(?<![a-z0-9]){re.escape(user)}(?![a-z0-9])", values, re.IGNORECASE):
                    leaks.append(f"{name}: the user name {user}")
    return leaks
