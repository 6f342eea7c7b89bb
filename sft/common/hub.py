"""Read from the Hub, and put a folder there: one commit, privately unless --public is given, only listed files."""

import contextlib
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub  # which loads its parts when they are used

from sft.common.command import UserError, first_line

# Seconds before each further try; the files that have arrived are not sent again. A user waits for a query.
RETRY_PAUSES, QUERY_PAUSES = (1, 2, 4, 8, 16), (1, 2)
# In which the Hub's address has to answer: several times what a slow line takes, and short for a waiting user.
TIMEOUT_SECONDS = 3
# Answers of a server that may well answer otherwise in a while.
RETRYABLE_STATUSES = {408, 429, 500, 502, 503, 504}
# What a status means to the user, where the server's own words may not say it.
STATUS_ADVICE = {
    401: "you are not logged in, or the token has expired: run `hf auth login`",
    403: "your token may not write there: log in with one that may (`hf auth login`), or name another owner",
    409: "somebody else changes the repository at the same time: look at it, then run the command again",
    412: "somebody else changed the repository meanwhile: look at it, then run the command again",
    429: "too many requests: wait, then run the command again",
}


def pinned(name: str) -> tuple[str, str | None]:
    """(name, revision) of ``OWNER/NAME@REVISION``. The revision of a folder, or of a bare name, is None."""
    if Path(name).exists():
        return name, None
    name, _, revision = name.partition("@")
    return name, revision or None


def is_id(name: str) -> bool:
    """Whether `name` has the form ``OWNER/NAME``."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name))


def repo_file(path: str, name: str, kind: str = "model") -> Path | None:
    """A file of a folder or, downloaded if need be, of a repository on the Hub; None without one."""
    if Path(path).is_dir():
        return file if (file := Path(path) / name).is_file() else None
    repo, revision = pinned(path)
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name, repo_type=kind, revision=revision))
    except (OSError, ValueError):  # the Hub's errors are OSErrors
        return None


@functools.cache
def unreached() -> str:
    """Why the Hub cannot be reached, or "" if it can: to be called before a name on the Hub is looked up.

    The Hub's client tries for a minute before it gives up, and with every file anew. Where one short try fails, this
    process goes on as with HF_HUB_OFFLINE=1: it loads what is in the cache at once, and looks for nothing else.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE=1 forbids to contact the Hub: unset it where there is a network"
    why = f"no answer in {TIMEOUT_SECONDS} s"

    def try_once() -> None:
        nonlocal why
        try:
            get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS, follow_redirects=False)
            why = ""
        except Exception as error:  # whatever the HTTP library raises
            # A server that breaks off is there: the client tries again.
            no_server = re.match("Connect|Proxy|.*Timeout$", type(error).__name__)
            why = first_line(list(chain(error))[-1]) if no_server else ""

    # Only a thread that is left behind limits the time that a name server takes, or several addresses in turn.
    thread = threading.Thread(target=try_once, daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    failure = why  # which the thread may still change
    if not failure:
        return ""
    # No function of the libraries turns this on in a running process. Hub client, transformers and PEFT look this name
    # up at every request; datasets has a copy of its own, and PEFT and further processes read the environment too.
    constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    if "datasets.config" in sys.modules:
        sys.modules["datasets.config"].HF_HUB_OFFLINE = True
    advice = "check the network (on a machine that is always offline, set HF_HUB_OFFLINE=1)"
    return f"the Hub cannot be reached ({failure}): {advice}"


@contextlib.contextmanager
def loading_errors(
    words: str, advice: str = ". Check name and network, or give a local folder", also: type[Exception] = OSError
) -> Iterator[None]:
    """Turn what loading from a folder or the Hub raises, and `also`, into a `UserError`: ``WORDS: REASON``, advice."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, UserError, also) as error:  # RuntimeError of weights of other sizes
        from huggingface_hub.errors import LocalEntryNotFoundError

        reason = first_line(error).rstrip(".")
        if "trust_remote_code" in str(error):
            reason = (
                "it needs code from its own repository, which is never run here (SECURITY.md): use a model that "
                "transformers knows"
            )
        elif why := unwritable_cache(error):
            reason = why
        elif cause(error, LocalEntryNotFoundError) and (why := unreached()):
            reason = f"it is not in the cache, and {why}, or give a local folder"
        elif isinstance(error, OSError | ValueError | also):
            reason += advice
        raise UserError(f"{words}: {reason}") from error


def files_of(info: Any) -> set[str]:
    """Names of the files in a repository, without the one that the Hub puts there; none if there is no repository."""
    return {file.rfilename for file in info.siblings} - {".gitattributes"} if info else set()


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it: the client wraps some of its errors."""
    while error is not None:
        yield error
        error = error.__cause__


def cause(error: BaseException, *kinds: type[BaseException]) -> Any:
    """The first error of these kinds in the chain, or None."""
    return next((link for link in chain(error) if isinstance(link, kinds)), None)


def unwritable_cache(error: BaseException) -> str:
    """Why the Hub's cache cannot be written, where that is the error, or ""."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for link in chain(error):
        place = str(getattr(link, "filename", None) or "-")
        if HF_HUB_CACHE.startswith(place) or place.startswith(HF_HUB_CACHE):
            return f"the cache {HF_HUB_CACHE} cannot be written ({link.strerror}): set HF_HOME to another folder"
    return ""


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with, or None where it did not answer."""
    from huggingface_hub.errors import HfHubHTTPError

    answer = cause(error, HfHubHTTPError)
    return answer and answer.response.status_code


def no_answer(error: BaseException) -> bool:
    """Whether the connection failed or broke off, under the client's HTTP library or under its storage's (Xet)."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    answered = cause(error, HfHubHTTPError, OfflineModeIsEnabled)
    return not answered and cause(error, HTTPError, ConnectionError, TimeoutError) is not None


def attempt(words: str, call: Callable[[], Any], pauses: Sequence[int] = RETRY_PAUSES, consequence: str = "") -> Any:
    """The result of `call`, repeated after errors that may pass: a dropped connection, a busy server, a rate limit.

    Whatever else it raises becomes a `UserError`: ``WORDS: REASON. CONSEQUENCE``.
    """
    left = iter(pauses)
    while True:
        try:
            return call()
        except Exception as error:  # of the client, of its HTTP library or of its storage's; never a traceback
            may_pass = no_answer(error) or status_of(error) in RETRYABLE_STATUSES
            pause = next(left, None) if may_pass else None
            if pause is None:
                raise UserError(f"{words}: {reason(error)}" + (f". {consequence}" if consequence else "")) from error
            print(f"The Hub: {reason(error)}. Next try in {pause} s", file=sys.stderr, flush=True)
            time.sleep(pause)


def reason(error: BaseException) -> str:
    """What went wrong, in words for the user."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if no_answer(error):
        return f"no connection, or it broke off ({first_line(list(chain(error))[-1])})"
    if cause(error, OfflineModeIsEnabled):
        return unreached()
    if isinstance(error, LocalTokenNotFoundError):
        return "not logged in: run `hf auth login` first"
    if advice := STATUS_ADVICE.get(status_of(error)):
        message = cause(error, HfHubHTTPError).server_message
        return advice + (f" (the Hub says: {message})" if message else "")
    return " ".join(str(error).split())[:400] or type(error).__name__


def check_push(option: str, repo: str, kind: str, public: bool) -> Any:
    """What the Hub knows of the repository, or None if there is none yet: to be called before the work.

    `option` is how the user named it, `kind` is "model" or "dataset". Raises `UserError` if it cannot be written: for
    its name, its owner, the login or the connection; or if it is public and must not be.
    """
    words = f"{option} {repo}"
    if not is_id(repo):
        raise UserError(f"{words}: give OWNER/NAME")
    query = functools.partial(attempt, f"{words}: the Hub refuses", pauses=QUERY_PAUSES)
    me = query(huggingface_hub.whoami)
    exists = query(lambda: huggingface_hub.repo_exists(repo, repo_type=kind))
    info = query(lambda: huggingface_hub.repo_info(repo, repo_type=kind)) if exists else None
    owners = {me["name"], *(org["name"] for org in me.get("orgs") or [])}
    # A browser's login has no role, and a fine-grained token may not see all organisations.
    role = ((me.get("auth") or {}).get("accessToken") or {}).get("role")
    if repo.split("/")[0] not in owners and role in ("read", "write"):
        raise UserError(f"{words}: you may write as {' or '.join(sorted(owners))}: name one of them as the owner")
    if role == "read":
        raise UserError(f"{words}: your token may only read: log in with one that may write (`hf auth login`)")
    if info is not None and not info.private and not public:
        raise UserError(f"{words} is public: pass --public (in a recipe, hub_private_repo: false) if that is meant")
    return info


def create(option: str, repo: str, kind: str) -> None:
    """Make the repository, empty and private, or raise `UserError`: only that proves that the token may write."""
    options = {"repo_type": kind, "private": True, "exist_ok": True}
    attempt(f"{option} {repo} cannot be made", lambda: huggingface_hub.create_repo(repo, **options))


def push(
    option: str,
    repo: str,
    kind: str,
    folder: Path,
    message: str,
    allow: Sequence[str],
    replaced: Sequence[str],
    parent: str | None = None,
) -> Any:
    """Upload the files of `folder` that match `allow` in one commit, which also deletes what matches `replaced`.

    A new repository is private. With `parent`, nothing is uploaded if the repository is not at this commit any more.
    Returns the commit. Raises `UserError` if the Hub refuses; then nothing is committed, and `folder` stays.
    """
    create(option, repo, kind)
    patterns = {"allow_patterns": list(allow), "delete_patterns": list(replaced)}
    options = {"repo_type": kind, "commit_message": message, "parent_commit": parent, **patterns}
    return attempt(
        f"{option} {repo}",
        lambda: huggingface_hub.upload_folder(repo_id=repo, folder_path=folder, **options),
        consequence=f"Nothing was committed; what was to be uploaded is complete in {folder}",
    )


def make_public(option: str, repo: str, kind: str) -> None:
    """Let everybody see the repository; raises `UserError` if the Hub refuses."""
    words = f"{option} {repo} is uploaded and stays private"
    attempt(words, lambda: huggingface_hub.update_repo_settings(repo, repo_type=kind, private=False))
