"""The model card, from the records of a run and its evaluations; what no file shows is left out or called unknown."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.common.command import UserError
from sft.common.display import duration, render
from sft.common.hub import is_id, pinned
from sft.common.prompts import user_message
from sft.evaluation.tables import SCORES, Row, notes_of, paired_table, score_table, scores_of, table_of

# Rows of the published files (arXiv 2305.10415 and the data set's card): a file of this name and format with as many
# rows is taken for the published one.
PUBLISHED_ROWS = {
    ("pmc_vqa_v1", "train.csv"): 176_948,
    ("pmc_vqa_v1", "test.csv"): 50_000,
    ("pmc_vqa_v1", "test_clean.csv"): 2_000,
    ("pmc_vqa_v2", "train_2.csv"): 152_603,
    ("pmc_vqa_v2", "test_2.csv"): 33_430,
}
PMC_VQA = "xmcmic/PMC-VQA"
# Rows of the table of the dev curve, at most.
DEV_CURVE_ROWS = 8
DEV_COLUMNS = {
    "dev loss (nats a token)": "{eval_loss:.4f}",
    "dev accuracy": "{eval_mcq_accuracy:.3f}",
    "95 % interval": "{eval_mcq_accuracy_low:.3f} to {eval_mcq_accuracy_high:.3f}",
    "questions": "{eval_mcq_questions}",
}
SHOWN_VERSIONS = ("trl", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed", "datasets", "torch")


@dataclass(frozen=True)
class Facts:
    """What a card is written from. `base` and `repo` are ids on the Hub; licences are None if they are not known."""

    repo: str
    base: str
    revision: str | None
    is_adapter: bool
    answer_format: str
    licence: str | None
    base_licence: str | None
    manifest: dict[str, Any]
    dev: dict[str, Any]  # eval_results.json
    history: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]  # results.json of each
    evaluated_before_merging: bool = False
    base_was_named: bool = False  # by whoever published it, in the place of a folder
    model_class: str = "AutoModelForCausalLM"  # of the base model
    stored_quantisation: str | None = None  # of the base model, where its weights are stored quantised
    older_versions_read_it: bool = True  # transformers 4 computes the same model

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest["settings"]

    @property
    def rows_per_epoch(self) -> int:
        return round(sum(d["weight"] * d.get("splits", {}).get("train", 0) for d in self.manifest["datasets"]))

    @property
    def sources(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, what is known) of every file of the training data."""
        return [pair for data in self.manifest["datasets"] for pair in data.get("sources", {}).items()]

    @property
    def published(self) -> set[str]:
        """Files of the training data that have the rows of a published file of PMC-VQA."""
        return {name for name, source in self.sources if is_published(name, source)}

    @property
    def is_pmc_vqa(self) -> bool:
        """Whether every source file is a published PMC-VQA file."""
        return bool(self.sources) and all(is_published(name, source) for name, source in self.sources)


def is_published(name: str, source: dict[str, Any]) -> bool:
    """Whether a source of a prepared data set has the name, format and number of rows of a published file."""
    return PUBLISHED_ROWS.get((source["format"], name)) == source["rows"]


def metadata(facts: Facts) -> str:
    """The YAML between the lines of dashes, with the evaluations as the Hub's model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="question-answering",
            task_name="Multiple-choice question answering",
            dataset_type=PMC_VQA if facts.published.issuperset(evaluation.get("files") or {""}) else "other",
            dataset_name=f"{data_name(evaluation['dataset'])}, {named_files(evaluation)}",
            dataset_split=evaluation["split"],
            metric_type="accuracy",
            metric_name=f"accuracy, {SCORES[score]}",
            metric_value=round(measured["accuracy"], 4),
            metric_args={
                "n": measured["n"],
                "ci95": [round(bound, 4) for bound in measured["ci95"]],
                "floors": {name: round(value, 4) for name, value in evaluation["floors"].items()},
            },
        )
        for evaluation in facts.evaluations
        for score, measured in evaluation["scores"].items()
    ]
    card = ModelCardData(
        language="en",
        license=facts.licence or "other",
        license_name=None if facts.licence else "not-named",
        base_model=facts.base,
        base_model_relation="adapter" if facts.is_adapter else "finetune",
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="text-generation",
        datasets=[PMC_VQA] if facts.is_pmc_vqa else None,
        tags=["medical", "multiple-choice", "sft", "trl", *(["lora"] if facts.settings["use_peft"] else [])],
        model_name=facts.repo.split("/")[1],
        eval_results=results or None,
    )
    return card.to_yaml()


def named_files(evaluation: dict[str, Any]) -> str:
    """The files that the evaluated questions are from, with how many of each."""
    return ", ".join(f"{name} ({n})" for name, n in (evaluation.get("files") or {}).items()) or "files not recorded"


def data_name(name: str) -> str:
    """A data set's id on the Hub, with its revision, or the last name of its folder here."""
    return name if is_id(pinned(name)[0]) and not Path(name).exists() else Path(name).name


def bold_scores(table: list[list[str]]) -> list[list[str]]:
    """A table of scores and floors with the accuracies of the scores in bold."""
    return [
        [f"**{label}**", f"**{accuracy}**", *cells] if label in SCORES.values() else [label, accuracy, *cells]
        for label, accuracy, *cells in table
    ]


def dev_evaluations(history: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What was measured on dev, by step."""
    by_step: dict[int, dict[str, Any]] = {}
    for line in history:
        if any(key.startswith("eval_") for key in line):
            by_step.setdefault(line["step"], {}).update(line)
    return dict(sorted(by_step.items()))


def dev_table(facts: Facts, evaluations: dict[int, dict[str, Any]]) -> list[list[str]]:
    """At most `DEV_CURVE_ROWS` evaluations, evenly spread, and the checkpoint that was kept."""
    steps, last = list(evaluations), DEV_CURVE_ROWS - 1
    shown = sorted({steps[round(i * (len(steps) - 1) / last)] for i in range(DEV_CURVE_ROWS)}) if steps else []
    rows = [Row(str(step), evaluations[step], None) for step in shown]
    if kept := facts.dev.get("best"):
        name = facts.dev.get("best_checkpoint") if facts.settings["load_best_model_at_end"] else None
        rows.append(Row(f"kept: {name or 'the last step'}", kept, None))
    return table_of(rows, DEV_COLUMNS, "step")


def overlap_sentence(data: dict[str, Any]) -> str:
    """What the training split shares with the test splits of its data set."""
    if not any(split.startswith("test") for split in data["splits"]):
        return "It has no test split; what its rows share with other data was not measured."
    shared = [
        f"{row['shared']:,} by {row['by']}"
        for row in data.get("overlap", [])
        if "train" in row["splits"] and any(split.startswith("test") for split in row["splits"]) and row["shared"]
    ]
    nothing = "nothing by article, figure or text" if "overlap" in data else "not recorded"
    return f"Its test splits were not trained on; shared by train and test: {', '.join(shared) or nothing}."


def model_card(facts: Facts) -> str:
    """README.md of a published model; raises `UserError` if the facts lack what a run of this version leaves."""
    from jinja2 import UndefinedError

    choices = ["Congo red", "Prussian blue", "Oil Red O", "Von Kossa"]
    functions = (overlap_sentence, score_table, bold_scores, paired_table, scores_of, notes_of, named_files, data_name)
    try:
        versions = facts.manifest["versions"]
        on_dev = dev_evaluations(facts.history)
        return render(
            Path(__file__).with_name("templates") / "model_card.md",
            facts=facts,
            metadata=metadata(facts),
            question=json.dumps(user_message("Which stain shows iron in tissue?", choices, facts.answer_format)),
            evaluated={score for evaluation in facts.evaluations for score in evaluation["scores"]},
            last=facts.history[-1] if facts.history else {},
            seconds=next((line["train_runtime"] for line in facts.history if "train_runtime" in line), None),
            versions=", ".join(f"{name} {versions[name]}" for name in SHOWN_VERSIONS if name in versions),
            dev_steps=list(on_dev),
            dev_shown=DEV_CURVE_ROWS,
            dev_table=dev_table(facts, on_dev),
            **{function.__name__: function for function in (*functions, is_published, duration)},
        )
    except (KeyError, IndexError, TypeError, UndefinedError) as error:
        # "'parameters'", or "'dict object' has no attribute 'parameters'" of Jinja
        missing = str(error).rpartition(" ")[2] if isinstance(error, UndefinedError) else error
        raise UserError(
            f"run_manifest.json or an evaluation lacks {missing}: train or evaluate with this version"
        ) from error
