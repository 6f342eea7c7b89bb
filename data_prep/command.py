"""What every command of this project shares: how it refuses, and how it writes files whole or not at all."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class UserError(Exception):
    """Something that the user can mend. The message is one line: what was found, where, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` ends it with one line on stderr and exit status 2, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        # Under a launcher every process finds the same fault; one of them says so.
        if os.environ.get("RANK", "0") == "0":
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def whole_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which takes its name only if the block succeeds.

    Raises `UserError` if `path` exists and `overwrite` is false, or if the disk refuses.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: pass --overwrite to replace it, or choose another folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON under a temporary name, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.rename(path)
