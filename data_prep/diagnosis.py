"""What a file is that preparation cannot read, and what to do with it, in the words of a refusal."""

from collections.abc import Iterable

from data_prep.formats import FORMATS, Format, spelling

# Files of tables that are not read; beside files that are read, preparation names them.
OTHER_ENDINGS = (
    *(".arrow", ".feather", ".xlsx", ".xls", ".ods"),
    *(".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"),
)
HOW_TO_READ = "unpack it, or save it as CSV UTF-8"


def fault_of_header(columns: tuple[str, ...], wanted: Format | None) -> str:
    """Why columns, or the keys of a JSON object, are not those of `wanted`, or of any known format, and what to do."""
    if {"id", "reasoning"} <= set(columns):
        return "it holds rationales: name it with --add_reasoning, and keep it outside of the folder"
    missing = {known: _missing(known, columns) for known in ([wanted] if wanted else FORMATS.values())}
    known = min(missing, key=lambda known: len(missing[known]) / len(known.columns))
    if not wanted and len(missing[known]) > len(known.columns) / 2:
        return (
            'say which column holds what: --columns "question=stem, options=A,B,C,D, answer=label" '
            "(docs/own_questions.md). The first line of a CSV file names the columns"
        )
    lacking = ", ".join(missing[known])
    return f"for {known.title} it lacks {lacking}: rename or add what is missing, or name its column with --columns"


def _missing(known: Format, columns: Iterable[str]) -> list[str]:
    """The columns of a format that are not here, however they are spelt."""
    present = set(map(spelling, columns))
    return [name for name in known.columns if spelling(name) not in present]
