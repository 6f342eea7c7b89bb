"""What a file is that preparation cannot read, and what to do with it, in the words of a refusal."""

import re
from collections.abc import Iterable

from data_prep.formats import FORMATS, Format

# Files of tables that are not read; beside files that are read, preparation names them.
OTHER_ENDINGS = (
    *(".arrow", ".feather", ".xlsx", ".xls", ".ods"),
    *(".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"),
)
HOW_TO_READ = "unpack it, or save it as CSV UTF-8"


def _spelling(name: str) -> str:
    """The letters and digits of a column's name."""
    return re.sub(r"[\W_]+", "", name).casefold()


def _closest(columns: Iterable[str]) -> tuple[Format, dict[str, str]]:
    """The format that has most of its columns here, however they are spelt, and these columns as spelt here."""
    present = {_spelling(name): name for name in columns}
    formats = {
        known: {name: present[_spelling(name)] for name in known.columns if _spelling(name) in present}
        for known in FORMATS.values()
    }
    return max(formats.items(), key=lambda item: len(item[1]) / len(item[0].columns))


def fault_of_header(columns: tuple[str, ...]) -> str:
    """Why columns, or the keys of a JSON object, are of no known format, and what to do."""
    if {"id", "reasoning"} <= set(columns):
        return "it holds rationales: name it with --add_reasoning, and keep it outside of the folder"
    known, here = _closest(columns)
    if not here:
        titles = ", ".join(known.title for known in FORMATS.values())
        return (
            f"it has no column of any known format ({titles}). The first line of a CSV file names the columns; a JSON "
            "file has one question a line"
        )
    missing = [
        f"{name} (here {here[name]!a})" if name in here else name for name in known.columns if here.get(name) != name
    ]
    return f"for {known.title} it lacks {', '.join(missing)}: rename or add what is missing"
