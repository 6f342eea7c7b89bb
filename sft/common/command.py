"""What every command of this project shares: how it refuses, and how it reads, writes and names files."""

import atexit
import contextlib
import errno
import gc
import hashlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

GIB = 2**30


class UserError(Exception):
    """Something that the user can mend. The message is one line: what is wrong, where, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` ends it with one line on stderr and exit status 2, Ctrl-C with 130."""
    # The libraries make some hundred thousand objects that live until the end. Looking through them less often during
    # imports, and not at exit, makes every command that imports them start and end sooner.
    gc.set_threshold(20_000, 10, 10)
    atexit.register(gc.freeze)
    # Not every terminal and log file is in UTF-8: what it has no letter for is written as an escape.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        check_one_checkout(main)
        main()
    except (UserError, PermissionError, IsADirectoryError, NotADirectoryError) as error:
        message = str(error) if isinstance(error, UserError) else f"{error.filename}: {error.strerror}"
        # Under a launcher every process meets the same fault; the first of each machine reports it.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print("error: " + " ".join(as_named_here(message).split()), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


class _Forgiving(io.FileIO):
    """A file that drops what cannot be written: the disk is full, or the reader of the pipe is gone."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def outlive_output() -> None:
    """Let this process go on when its output cannot be written: for work that is worth more than its log."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            buffer = io.BufferedWriter(_Forgiving(stream.fileno(), "w", closefd=False))
            options = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": stream.line_buffering}
            setattr(sys, name, io.TextIOWrapper(buffer, **options))


def run_by_name() -> None:
    """Every installed command begins here: `pmcvqa-evaluate` runs `main` of sft/evaluate.py."""
    name = Path(sys.argv[0]).stem.removeprefix("pmcvqa-")
    of_data = ("overlap", "prepare", "preview", "rationales")
    place = "sft.run" if name == "train" else f"{'data_prep' if name in of_data else 'sft'}.{name}"
    module = importlib.import_module(place)
    module.__doc__ = as_named_here(module.__doc__)  # which --help shows
    run(module.main)


def shipped(path: Path) -> Path:
    """`path`, or, if it is not here, the recipe, template or launch file of that name that came with the project."""
    is_ours = path.parts[:1] in (("recipes",), ("accelerate_configs",)) and (shipped_folder() / path).is_file()
    return shipped_folder() / path if is_ours and not path.exists() else path


def shipped_folder() -> Path:
    """Where recipes and launch files lie: installed, in the package (setup.cfg); in a clone, beside it."""
    package = Path(__file__).parents[1]
    return package if (package / "recipes").is_dir() else package.parent


def as_named_here(text: str) -> str:
    """`text`, with a clone's commands and files as they are named outside it: ``pmcvqa-train``, and a full path."""
    if Path("sft/common/command.py").is_file():
        return text
    text = re.sub(r"(accelerate launch [^\n`]*?)\bsft/(\w+)\.py", r"\1-m sft.\2", text)
    text = re.sub(r"(?:python )?(?<![\w/.])(?:sft|data_prep)/(\w+)\.py", r"pmcvqa-\1", text)
    text = text.replace("pmcvqa-run", "pmcvqa-train")
    return re.sub(r"(?<![\w/])(recipes/(?:templates/)?\*|accelerate_configs/)", rf"{shipped_folder()}/\1", text)


def check_one_checkout(main: Callable[[], None]) -> None:
    """Raise `UserError` if `main` lies in one copy of this project, and its packages were imported from another."""
    # As where the environment of another clone is active, or this folder was copied with its environment.
    imported, around_main = Path(__file__).resolve().parents[2], Path(main.__code__.co_filename).resolve().parents
    folder = next((folder for folder in around_main if (folder / "sft/common/command.py").exists()), imported)
    if not folder.samefile(imported):
        raise UserError(
            f"this command lies in {folder}, but {sys.executable} imports the project from {imported}: in the first "
            "folder, type `make quickstart` and `source .venv/bin/activate`, or `pip install -c constraints.txt -e .` "
            "in an environment of your own"
        )


def first_line(error: BaseException) -> str:
    """What an error says, fit for one line: its first line, and the next after a colon; else its kind."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return (f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first)[:300]


@contextlib.contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which takes its name only if the block succeeds.

    Raises `UserError` if `path` exists and `overwrite` is false, or if the disk refuses. Ctrl-C, SIGTERM and SIGHUP
    leave neither folder behind; the one that was there before goes only when the new one is complete.
    """
    check_output_path(path, overwrite)
    path = path.resolve()  # what a link points to is replaced, not the link
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new_parents = [parent for parent in path.parents if not parent.exists()]
    replaced = temporary.with_suffix(".old")
    with terminated_as_exit():
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            if replaced.exists() and not path.exists():  # stopped between the two renames
                replaced.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)
            with contextlib.suppress(OSError):  # they stay if something is in them
                for parent in new_parents:
                    parent.rmdir()


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, of this process alone; the file written there then takes its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_disk(folder: Path, needed: float, purpose: str, advice: str, reclaimed: int = 0) -> None:
    """Raise `UserError` (``PURPOSE … GiB, … GiB are free: ADVICE``) if `needed` bytes do not fit where `folder` is.

    The folder need not exist yet; `reclaimed` bytes there will be free by then.
    """
    place = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(place).free + reclaimed
    if needed > free:
        raise UserError(f"{purpose} {needed / GIB:.1f} GiB, {free / GIB:.1f} GiB are free: {advice}")


def check_output_path(path: Path, overwrite: bool) -> None:
    """Raise `UserError` if `path` exists and must not be replaced: ask before long work whose result goes there."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: choose a folder")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: pass --overwrite to replace it, or choose another folder")


def check_holds_only(folder: Path, patterns: Iterable[str], what: str) -> None:
    """Raise `UserError` if `folder` holds a file that fits none of the patterns: --overwrite must not delete it."""
    known = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    entries = (path for path in folder.rglob("*") if path not in known)
    if other := next((path for path in entries if path.is_symlink() or not path.is_dir()), None):
        name = other.relative_to(folder)
        raise UserError(f"{folder} is not only {what}, it holds {name}, which would be lost: choose another folder")


@contextlib.contextmanager
def terminated_as_exit() -> Iterator[None]:
    """Let SIGTERM (a scheduler's way to stop a job) unwind the stack, so that temporary files go.

    So does SIGHUP (the terminal is closed), unless it is ignored, as under nohup.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))  # Windows has one of them
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_json(path: Path) -> Any:
    """The value in a JSON file; raises `UserError` if it cannot be read, or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256(*files: Path) -> str:
    """SHA-256 of the files' contents, one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def strip_local_paths(value: Any) -> Any:
    """`value` (as JSON knows it) with every path from outside of the working folder reduced to its last name."""
    if isinstance(value, dict):
        return {strip_local_paths(key): strip_local_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strip_local_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("{"):  # a mapping of a recipe, which its parser carries as text
        try:
            return json.dumps(strip_local_paths(json.loads(value)), ensure_ascii=False)
        except ValueError:
            return value
    is_local_path = re.match(r"[/~]|[A-Za-z]:[\\/]|\.\./", value) and len(value) > 1
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if is_local_path else value
