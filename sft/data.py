"""Open a split of a prepared data set, by folder or Hub id."""

from pathlib import Path
from typing import Any

from data_prep.command import UserError

# What data_prep/prepare.py promises about every row.
COLUMNS = {"id", "prompt", "completion", "question", "choices", "gold", "answer_format"}


def load_split(path: str, split: str, name: str | None = None) -> Any:
    """The `datasets.Dataset` of one split.

    Raises:
        UserError: no such data set or split, not a prepared one, or an empty split.
    """
    from datasets import load_dataset

    advice = "prepare one with `python data_prep/prepare.py --dataset_path DIR --output_dir PMC-VQA-Processed`"
    # A prepared folder starts with its card; load_dataset would search any other folder, or the Hub, for something.
    if Path(path).exists() and not (Path(path) / "report.json").is_file():
        raise UserError(f"data set {path} is not a prepared data set: {advice}")
    try:
        dataset = load_dataset(path, name=name)
    except (OSError, ValueError) as error:
        raise UserError(f"data set {path} cannot be opened: {str(error).splitlines()[0]}: {advice}") from error
    if split not in dataset:
        raise UserError(f"data set {path} has no split {split}: it has {', '.join(dataset)}")
    missing = COLUMNS - set(dataset[split].column_names)
    if missing:
        raise UserError(f"data set {path} lacks the columns {', '.join(sorted(missing))}: {advice}")
    if not len(dataset[split]):
        raise UserError(f"split {split} of data set {path} is empty")
    return dataset[split]
