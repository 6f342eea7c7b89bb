"""Where questions come from: tables in files and folders, saved `datasets` folders, data sets on the Hub.

Faults of a file stop the preparation with a `UserError`; faults of one row raise `RejectedRow` in `cells_of`.
"""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from data_prep.diagnosis import HOW_TO_READ, OTHER_ENDINGS, fault_of_header
from data_prep.formats import FORMATS, Format, match, split_named
from data_prep.questions import RejectedRow
from sft.common.arrow_table import ArrowTable, saved_tables
from sft.common.command import UserError, sha256
from sft.common.hub import is_id, loading_errors, unreached
from sft.common.json_table import JsonTable
from sft.common.table import Table, sound
from sft.common.table_files import ENDINGS, open_table

# Files that describe a data set, as `datasets` and the Hub write them; they hold no questions.
DESCRIPTIONS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "croissant.json")
PLAIN_FOLDERS = ("data", "default")  # whose names say nothing of what they hold
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?|(\d+)")


@dataclass(frozen=True)
class Source:
    """One table, in one file or several parts, or one split of a saved data set."""

    path: Path  # of the first file, or of the saved folder
    name: str  # file name, or split name
    stem: str  # what the ids of its rows begin with
    tables: tuple[Table, ...]
    columns: tuple[str, ...]  # as the format spells them
    format: Format
    split: str  # train, dev, test, test_clean; "" where the name does not tell
    answers: str = ""  # how they are read (data_prep/answers.py), once the column of answers was judged

    def sha256(self) -> str:
        """SHA-256 of the bytes that are read, in hexadecimal."""
        if isinstance(self.tables[0], ArrowTable) and self.tables[0].split:
            folder = self.path / self.name
            return sha256(*sorted((folder if folder.is_dir() else self.path).glob("*.arrow")))
        return sha256(*(table.path for table in self.tables))

    def described(self) -> str:
        """What kind of file it is, with encoding and separator: ``CSV, semicolons, Windows-1252``."""
        parts = f", {len(self.tables)} parts" if len(self.tables) > 1 else ""
        return self.tables[0].described() + parts

    def rows(self, only: set[str] | None = None) -> Iterator[Any]:
        """The rows as they come, to be read by `cells_of`. Raises `UserError` where a file breaks off."""
        return itertools.chain.from_iterable(table.rows(only) for table in self.tables)

    def readable(self, only: set[str] | None = None) -> Iterator[Mapping[str, Any]]:
        """The cells of the rows that can be read; where that saves time, of the columns `only`."""
        for raw in self.rows(only):
            with contextlib.suppress(RejectedRow):
                yield cells_of(raw, self)


def cells_of(raw: Any, source: Source) -> Mapping[str, Any]:
    """The cells of one row by column: texts, or lists and objects of texts. Raises `RejectedRow`."""
    table = source.tables[0]
    cells = table.cells(raw)
    if isinstance(table, JsonTable) and not all(column in cells for column in source.format.needed):
        raise RejectedRow("line lacks a column of its format")
    return cells


def find_sources(
    place: str, wanted: Format | None, revision: str | None, config: str | None = None, encoding: str | None = None
) -> list[Source]:
    """The sources at `place`: a file, a folder of files, a saved `datasets` folder, or an id on the Hub.

    They are of the format `wanted`, or of any known one; `config` is the part to read of several, `encoding` that of
    text files that do not show theirs. Prints which others are there. Raises `UserError` if nothing is there, for a
    file of no known format, if none has the wanted format, for two files of one name, or for a Hub id without commit.
    """
    path, own = Path(place), wanted if wanted and FORMATS.get(wanted.name) != wanted else None
    is_saved = path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if path.exists() and revision:
        raise UserError(f"--revision {revision} is for a data set on the Hub, and {place} is here on the disk")
    if config and (is_saved or path.is_file()):
        raise UserError(f"--config {config} is for a folder with several parts, or an id on the Hub")
    if is_saved:
        tables = saved_tables(path, split_named(path.name) or "train")
        every = [_source(table.split, table.split, (table,), f"{path}, split {table.split}", own) for table in tables]
    else:
        if (path / "report.json").is_file() and (path / "rejected.csv").is_file():
            raise UserError(f"--dataset_path {path} is prepared already: give the folder that it was made from")
        if path.is_file():
            path, files = path.parent, _readable(path.parent, [PurePath(path.name)])
        elif path.exists():
            files = _chosen(_files_in(path, config), config, wanted, place)
        else:
            path, files = _download(place, wanted, revision, config)
        every = list(_sources(path, files, own, encoding))
    sources = [source for source in every if wanted in (None, source.format)]
    if not sources:
        there = ", ".join(f"{source.name} ({source.format.title})" for source in every)
        raise UserError(f"--format {wanted.name}: {path} holds no {wanted.title}, but {there}")
    for first, second in itertools.combinations(sources, 2):
        if first.stem == second.stem:
            names = [first.name, second.name]
            if names[0] == names[1]:
                names = [str(source.path.relative_to(path)) for source in (first, second)]
            raise UserError(f"{names[0]} and {names[1]} would give their rows the same ids: rename one of them")
    for source in every:
        if source not in sources:
            print(f"Left out by --format: {source.name}, {source.format.title}")
    return sources


def _is_table(file: PurePath) -> bool:
    return file.suffix.lower() in ENDINGS and file.name not in DESCRIPTIONS


def _readable(folder: Path, files: Sequence[PurePath], folders: Sequence[PurePath] = ()) -> list[PurePath]:
    """The files that are read. Prints which tables and folders are not; raises `UserError` if there are none."""
    tables = [file for file in files if _is_table(file)]
    others = [file for file in files if file.suffix.lower() in OTHER_ENDINGS]
    if not tables:
        there = f", but {', '.join(map(str, (*files, *folders)[:5]))}" if files or folders else ""
        there += f" (a table that is not read: {HOW_TO_READ})" if others else ""
        raise UserError(
            f"--dataset_path {folder} holds no table ({', '.join(ENDINGS)}){there}: give the folder with train.csv, "
            "test.csv"
        )
    if described := [str(file) for file in files if file.name in DESCRIPTIONS]:
        print(f"Passed over: {', '.join(described)}, which describes a data set")
    archives = [file for file in others if file.suffix == ".zip"]
    others = [file for file in others if file not in archives]
    kinds = (others, HOW_TO_READ), (archives, "figures go with --figures"), (folders, "name a folder by itself")
    for unread, advice in kinds:
        if unread:
            print(f"Not read: {', '.join(map(str, unread))} ({advice})")
    return tables


def _files_in(folder: Path, config: str | None) -> list[PurePath]:
    """The tables of a folder, by their names in it: those beside each other, or else those in its folders."""

    def visible(paths: Iterable[Path]) -> list[PurePath]:
        names = (path.relative_to(folder) for path in sorted(paths))
        return [PurePath(name) for name in names if not any(part[0] == "." for part in name.parts)]

    here = visible(folder.iterdir())
    files, folders = ([name for name in here if (folder / name).is_dir() == is_dir] for is_dir in (False, True))
    if config or not any(_is_table(name) for name in files):
        within = [name for name in visible(folder.rglob("*")) if (folder / name).is_file() and len(name.parts) > 1]
        if any(map(_is_table, within)):
            return _readable(folder, within)
    return _readable(folder, files, folders)


def _config_of(file: PurePath) -> str:
    """The part of a data set that a file belongs to: its outermost folder, but for one that names a split."""
    folders = [name for name in file.parent.parts if name not in PLAIN_FOLDERS]
    return folders[0] if folders and not split_named(folders[0]) else ""


def _chosen(files: Sequence[PurePath], config: str | None, wanted: Format | None, place: str) -> list[PurePath]:
    """The files of one part of a data set, or of the parts that the format names. Raises `UserError` if unclear."""
    configs = sorted({_config_of(file) for file in files})
    listed = ", ".join(name or PLAIN_FOLDERS[0] for name in configs)
    known = [known.configs for known in ([wanted] if wanted else FORMATS.values()) if known.configs]
    known = [names for names in known if set(names) <= set(configs)]
    if config or len(configs) < 2:
        taken = ("" if config in PLAIN_FOLDERS else config,) if config else configs
    elif len(known) == 1:
        taken = known[0]
        if others := [name for name in configs if name not in taken]:
            print(f"Left out: the parts {', '.join(others)}")
    else:
        raise UserError(f"{place} has several parts: choose one with --config: {listed}")
    chosen = [file for file in files if _config_of(file) in taken]
    if not chosen:
        raise UserError(f"--config {config}: {place} has no such part, but {listed}")
    return chosen


def _download(
    place: str, wanted: Format | None, revision: str | None, config: str | None
) -> tuple[Path, list[PurePath]]:
    """(folder in the Hub's cache, names in it) of the tables of a data set on the Hub, at one commit."""
    if not is_id(place):
        raise UserError(
            f"--dataset_path {place} does not exist: give the folder that holds train.csv and test.csv, or one file"
        )
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise UserError(
            f"--dataset_path {place} is not a folder here. As a data set on the Hub it needs --revision with the 40 "
            "digits of a commit, so that it stays the same data"
        )
    from huggingface_hub import hf_hub_download, list_repo_files

    unreached()
    if wanted and wanted.hub_files:
        files = [PurePath(name) for name in wanted.hub_files]
    else:
        with loading_errors(f"{place} cannot be fetched from the Hub at {revision}"):
            names = list_repo_files(place, repo_type="dataset", revision=revision)
        formats = [known.name for known in FORMATS.values() if known.hub_files and {*known.hub_files} <= {*names}]
        if len(formats) > 1:
            raise UserError(f"{place} holds several formats: choose one with --format: {', '.join(formats)}")
        files = [PurePath(name) for name in sorted(names) if name[0] != "." and "/." not in name]
        beside = [file for file in files if len(file.parts) == 1 and _is_table(file)]
        within = [file for file in files if len(file.parts) > 1]
        files = _chosen(_readable(Path(place), within if config or not beside else beside), config, wanted, place)
    for file in files:
        with loading_errors(f"{file} of {place} cannot be fetched from the Hub at {revision}"):
            path = Path(hf_hub_download(place, str(file), repo_type="dataset", revision=revision))
    return path.parents[len(files[-1].parts) - 1], files


def _sources(folder: Path, files: Sequence[PurePath], own: Format | None, encoding: str | None) -> Iterator[Source]:
    """The sources in the files: one each, or one of all parts of a table."""
    several = len({_config_of(file) for file in files}) > 1
    parts: dict[tuple, list[tuple[str, PurePath]]] = {}
    for file in files:
        part = _PART.fullmatch(file.stem)
        folders = [name for name in file.parent.parts if name not in PLAIN_FOLDERS]
        folders = folders if several or not _config_of(file) else folders[1:]
        words = [*folders, (part[1] or "") if part else file.stem]
        stem = "-".join(filter(None, words)) or file.stem
        number, total = (part[2] or part[4], part[3]) if part and stem != file.stem else ("", str(file))
        parts.setdefault((stem, file.suffix, total), []).append((number, file))
    formats = [own] if own else [*FORMATS.values()]
    for (stem, suffix, total), group in parts.items():
        group.sort(key=lambda part: int(part[0] or 0))
        if (total or "").isdecimal() and [int(number) for number, _ in group] != list(range(int(total))):
            raise UserError(f"{folder}: {stem} has {len(group)} of {int(total)} parts: is the download complete?")
        paths = [folder / file for _, file in group]
        try:
            tables = [open_table(path, lambda columns: bool(match(columns, formats)), encoding) for path in paths]
            yield _source(stem + suffix, stem, tuple(tables), str(paths[0]), own)
        except UserError as error:
            if len(files) == 1:
                raise
            raise UserError(f"{error}. If {paths[0].name} holds no questions, move it out of the folder") from error


def _source(name: str, stem: str, tables: tuple[Table, ...], where: str, own: Format | None) -> Source:
    """The source with the format of its columns: the user's `own`, or a known one. Raises `UserError` otherwise."""
    columns = tables[0].columns
    try:
        sound("".join(columns))
    except RejectedRow:
        advice = "save the file as UTF-8, or name its --encoding, such as cp1252"
        raise UserError(f"{where}: the header is not UTF-8 text: {advice}") from None
    matched = match(columns, [own] if own else FORMATS.values())
    if matched is None:
        header = ascii(",".join(columns))[1:-1][:200] or "an empty file or first line"
        raise UserError(f"{where}: header of no known format: found {header}; {fault_of_header(columns, own)}")
    known, names = matched
    if twice := [name for name in known.columns if names.count(name) > 1]:
        raise UserError(f"{where}: two columns are called {twice[0]}: rename or remove the wrong one")
    split = split_named(stem.rpartition("-")[2]) or split_named(stem)  # the file's name before those of its folders
    if other := [table for table in tables if table.columns != columns and not isinstance(table, JsonTable)]:
        raise UserError(f"{other[0].path}: it has other columns than {where}, of which it is a part")
    return Source(tables[0].path, name, stem, tuple(t.called(names) for t in tables), names, known, split)
