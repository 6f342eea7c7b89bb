"""Open a split of a prepared data set, by folder or Hub id (``OWNER/NAME@REVISION``), or a mixture of several."""

import contextlib
import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.common.command import UserError, read_json
from sft.common.hub import loading_errors, pinned, repo_file, unreached
from sft.common.prompts import prompt_messages

# What data_prep/prepare.py promises about every row.
COLUMNS = {"id", "prompt", "completion", "question", "choices", "gold", "answer_format"}


def load_split(path: str, split: str) -> Any:
    """The `datasets.Dataset` of a split. Raises `UserError` if it is missing, empty, or of no prepared data set."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub import snapshot_download

    advice = "prepare one with `python data_prep/prepare.py --dataset_path DIR --output_dir PMC-VQA-Processed`"
    is_here, (name, revision) = Path(path).exists(), pinned(path)
    # A prepared folder holds report.json; in any other, load_dataset would load whatever files it finds.
    if is_here and not (Path(path) / "report.json").is_file():
        raise UserError(f"data set {path} is not a prepared data set: {advice}")
    # In place of a folder that is not here, load_dataset would take one of that name from its cache. On the Hub a data
    # set has an owner.
    if not is_here and (name.count("/") != 1 or path.startswith((".", "/", "~"))):
        raise UserError(f"data set {path} does not exist: {advice}")
    with loading_errors(f"data set {path} cannot be opened", f": {advice}", also=DatasetsError):
        if not is_here and unreached():  # load_dataset would take from its cache whatever version is there
            name, revision = snapshot_download(name, repo_type="dataset", revision=revision), None
        dataset = load_dataset(name, revision=revision)
    if split not in dataset:
        raise UserError(f"data set {path} has no split {split}: it has {', '.join(dataset)}")
    if missing := COLUMNS - set(dataset[split].column_names):
        raise UserError(f"data set {path} lacks the columns {', '.join(sorted(missing))}: {advice}")
    if not len(dataset[split]):
        raise UserError(f"split {split} of data set {path} is empty")
    row = dataset[split][0]
    if row["prompt"] != prompt_messages(row["question"], row["choices"], row["answer_format"]):
        raise UserError(
            f"data set {path} has other prompts than evaluation and inference would write (of another version): "
            "prepare it again"
        )
    return dataset[split]


def load_mixture(weights: Mapping[str, float], split: str, seed: int) -> Any:
    """The rows of one split of several data sets, each taken `weight` times: 1 is every row once, 0.5 a random half.

    The draw depends on the seed and on the order of the data sets alone: every process and every later run has the
    same rows. Raises `UserError` as `load_split`, or if answer formats or tokenizers differ.
    """
    from datasets import concatenate_datasets

    parts = []
    for number, (path, weight) in enumerate(weights.items()):
        rows = load_split(path, split)
        copies, rest = divmod(round(weight * len(rows)), len(rows))
        drawn = random.Random(f"{seed}:{number}").sample(range(len(rows)), rest)  # noqa: S311
        part = rows.select([*list(range(len(rows))) * copies, *sorted(drawn)]) if (copies, rest) != (1, 0) else rows
        if not len(part):
            raise UserError(f"dataset_mixture: {weight} of {path} is not a single row: raise its weight")
        parts.append(part)
    for column in ("answer_format", "tokenized_for"):
        values = [part[0].get(column, "nothing") for part in parts]
        if len(set(values)) > 1:
            listed = ", ".join(f"{path} {value}" for path, value in zip(weights, values, strict=True))
            raise UserError(f"dataset_mixture: {column} differs: {listed}: prepare them with the same options")
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def provenance(weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Of each data set of a mixture, what its report.json says it was made from; without a report, its name alone."""
    keys = ("sources", "splits", "overlap", "options", "read", "kept", "rejected", "duplicates")
    keys += ("answer_format", "prompt_version", "seed")
    data_sets = []
    for path, weight in weights.items():
        report = {}
        with contextlib.suppress(UserError):  # not JSON
            if file := repo_file(path, "report.json", "dataset"):
                report = read_json(file)
        data_sets.append({"name": path, "weight": weight, **{key: report[key] for key in keys if key in report}})
    return data_sets


def draw(dataset: Any, count: int, seed: int) -> list[dict]:
    """`count` rows, or all where there are not so many, in their order; which ones depends on the seed alone."""
    drawn = random.Random(seed).sample(range(len(dataset)), min(count, len(dataset)))  # noqa: S311
    return dataset.select(sorted(drawn)).to_list()


def data_fingerprint(dataset: Any, columns: list[str]) -> str:
    """Fingerprint of these columns of all rows, in their order; the place and name of the files do not matter."""
    import pyarrow as pa

    digest = hashlib.sha256()
    rows = dataset.select_columns(columns).with_format("arrow")
    for table in rows.iter(batch_size=10_000):
        table = table.combine_chunks().replace_schema_metadata(None)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        digest.update(sink.getvalue())
    return digest.hexdigest()[:16]
