"""Parquet files, and the splits of folders that `datasets` saved."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.common.command import UserError, first_line
from sft.common.table import Table, classes_of

BATCH = 1_000  # rows in memory


@dataclass(frozen=True)
class ArrowTable(Table):
    """Rows are objects, without the columns that hold images."""

    split: str = ""  # of a saved data set; "" for Parquet

    def described(self) -> str:
        return "saved data set" if self.split else "Parquet"

    def rows(self, only: set[str] | None = None) -> Iterator[dict[str, Any]]:
        return _rows(self, only)


def parquet_table(file: Path) -> ArrowTable:
    """The table in a Parquet file, with the class names that `datasets` writes into it. Raises `UserError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a complete Parquet file: {first_line(error)}") from error
    classes = ()
    with contextlib.suppress(ValueError, LookupError, TypeError):
        classes = classes_of(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    return ArrowTable(file, tuple(schema.names), tuple(schema.names), classes=classes)


def _rows(table: ArrowTable, only: set[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    def wanted(schema: Any) -> list[str]:  # images stay where they are
        names = dict(zip(table.columns, table.names, strict=True))
        read = {field.name for field in schema if "binary" not in str(field.type)}
        return [name for name, called in names.items() if name in read and (only is None or called in only)]

    def plain(batch: Any) -> list[dict[str, Any]]:
        """Its rows; a number of 32 bits or fewer with the digits that it has, and not those of 64 bits."""
        rows = batch.to_pylist(maps_as_pydicts="strict")
        for field in (field for field in batch.schema if str(field.type) in ("float", "halffloat")):
            for row, value in zip(rows, batch[field.name].to_numpy(zero_copy_only=False), strict=True):
                row[field.name] = None if row[field.name] is None else str(value)
        return rows

    try:
        if not table.split:
            import pyarrow.parquet as pq

            with pq.ParquetFile(table.path) as content:
                for batch in content.iter_batches(BATCH, columns=wanted(content.schema_arrow)):
                    yield from plain(batch)
        else:
            from datasets import Dataset, load_from_disk

            saved = load_from_disk(str(table.path))
            rows = saved if isinstance(saved, Dataset) else saved[table.split]
            rows = rows.select_columns(wanted(rows.features.arrow_schema)).with_format("arrow")
            for batch in rows.iter(BATCH):
                yield from plain(batch)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise UserError(f"{table.path}: it cannot be read to its end: {first_line(error)}") from error


def saved_tables(folder: Path, name: str) -> Iterator[ArrowTable]:
    """The splits of a folder that `save_to_disk` wrote; `name` is that of a single one. Raises `UserError`."""
    from datasets import ClassLabel, DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError, LookupError) as error:
        raise UserError(f"{folder}: not a complete saved data set, or an empty split: {first_line(error)}") from error
    for split, rows in (saved if isinstance(saved, DatasetDict) else {name: saved}).items():
        columns = tuple(rows.column_names)
        kinds = rows.features.items()
        classes = tuple((column, tuple(kind.names)) for column, kind in kinds if isinstance(kind, ClassLabel))
        yield ArrowTable(folder, columns, columns, classes=classes, split=split)
