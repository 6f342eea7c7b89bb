"""The model card: everything that is known of a published model, from the facts that its run and evaluations left.

No sentence here claims what no file shows; what is not known is left out or said to be unknown.
"""

import json
from dataclasses import dataclass
from typing import Any

from sft.common.command import UserError
from sft.common.prompts import OPEN, user_message
from sft.evaluation.comparison import SCORES

# Rows of the published files (arXiv 2305.10415 and the data set's card): a file of this name and format with as many
# rows is taken for the published one.
PUBLISHED = {
    ("pmc_vqa_v1", "train.csv"): 176_948,
    ("pmc_vqa_v1", "test.csv"): 50_000,
    ("pmc_vqa_v1", "test_clean.csv"): 2_000,
    ("pmc_vqa_v2", "train_2.csv"): 152_603,
    ("pmc_vqa_v2", "test_2.csv"): 33_430,
}
PMC_VQA, PMC_VQA_LICENCE = "xmcmic/PMC-VQA", "CC BY-SA"
# What each score is, for readers of the card.
MEANINGS = {
    "option_likelihood": "Option likelihood: the option whose completion, as trained, is the likeliest.",
    "generation": "Generation: the model writes, the text is parsed strictly, and what states no option is wrong.",
}
# Rows of the table of the dev curve.
CURVE = 8
SHOWN_VERSIONS = ("trl", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed", "datasets", "torch")


@dataclass(frozen=True)
class Facts:
    """What a card is written from. `base` and `repo` are ids on the Hub; licences are None where nobody told them."""

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

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run."""
        return self.manifest["settings"]

    @property
    def method(self) -> str:
        """How the weights were trained, in the field's words."""
        if not self.settings["use_peft"]:
            return "full fine-tune"
        frozen = "8-bit " if self.settings["load_in_8bit"] else "4-bit (NF4) " if self.settings["load_in_4bit"] else ""
        return f"{frozen}LoRA"

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
        """Whether all of them do."""
        return bool(self.sources) and self.published == {name for name, _ in self.sources}


def is_published(name: str, source: dict[str, Any]) -> bool:
    """Whether a source of a prepared data set has the name, format and number of rows of a published file."""
    return PUBLISHED.get((source["format"], name)) == source["rows"]


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def interval(ci95: list[float] | None) -> str:
    """A 95 % interval."""
    return f"{ci95[0]:.3f} to {ci95[1]:.3f}" if ci95 else "not told"


def metadata(facts: Facts) -> str:
    """The YAML between the lines of dashes, with the evaluations as the Hub's model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="question-answering",
            task_name="Multiple-choice question answering",
            dataset_type=PMC_VQA if facts.published.issuperset(evaluation.get("files") or {""}) else "other",
            dataset_name=f"{evaluation['dataset']}, {named_files(evaluation)}",
            dataset_split=evaluation["split"],
            metric_type="accuracy",
            metric_name=f"accuracy, {SCORES[score]}",
            metric_value=round(found["accuracy"], 4),
            metric_args={
                "n": found["n"],
                "ci95": [round(bound, 4) for bound in found["ci95"]],
                "floors": {name: round(value, 4) for name, value in evaluation["floors"].items()},
            },
        )
        for evaluation in facts.evaluations
        for score, found in evaluation["scores"].items()
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
    files = evaluation.get("files") or {}
    return ", ".join(f"{name} ({count})" for name, count in files.items()) or "files not told"


def evaluation_part(facts: Facts) -> str:
    """Accuracies with intervals and floors, or that there are none."""
    if not facts.evaluations:
        return "The model was not evaluated on a test split."
    parts = []
    for evaluation in facts.evaluations:
        options = evaluation["fingerprint"]["options"]
        how = ", ".join(f"{key} {options[key]}" for key in ("dtype", "quantization") if key in options)
        rows = [
            [
                f"**{SCORES[score]}**",
                f"**{found['accuracy']:.3f}**",
                interval(found["ci95"]),
                f"{found['balanced_accuracy']:.3f}",
                f"{found['rstd']:.3f}",
            ]
            for score, found in evaluation["scores"].items()
        ]
        rows += [
            [f"floor: {name.replace('_', ' ')}", f"{value:.3f}", "", "", ""]
            for name, value in evaluation["floors"].items()
        ]
        merged = ", measured with the adapter, before merging" if facts.evaluated_before_merging else ""
        whole = evaluation.get("questions_in_split", evaluation["n"])
        drawn = f"{evaluation['n']} questions" + (f", drawn from the {whole}" if whole != evaluation["n"] else "")
        parts.append(
            f"{drawn} of the {evaluation['split']} split of {evaluation['dataset']}: "
            f"{named_files(evaluation)}; {how}{merged}.\n\n"
            + table(["", "accuracy", "95 % interval", "balanced by gold letter", "RStd"], rows)
        )
        for score, title in SCORES.items():
            if score in evaluation.get("paired", {}):
                accuracy = evaluation["scores"][score]["accuracy"]
                parts.append(against(evaluation["paired"]["baseline"], title, accuracy, evaluation["paired"][score]))
        floor = max(evaluation["floors"], key=evaluation["floors"].get)
        for score, found in evaluation["scores"].items():
            if found["ci95"][0] <= evaluation["floors"][floor]:
                parts.append(
                    f"**By {SCORES[score]} it is not shown to be better than the floor {floor.replace('_', ' ')}**, "
                    "which lies in or above its interval."
                )
            if "outcomes" in found:
                sampling = ", ".join(f"{key} {value}" for key, value in found["sampling"].items())
                seeds = ", ".join(str(seed["seed"]) for seed in found["seeds"])
                shares = ", ".join(f"{outcome} {share:.1%}" for outcome, share in found["outcomes"].items())
                parts.append(
                    f"{SCORES[score].capitalize()} ({sampling}; seeds {seeds}): {shares}; "
                    f"{found['tokens']['mean']:.0f} tokens an answer."
                )
    scores = {score for evaluation in facts.evaluations for score in evaluation["scores"]}
    parts.append(
        " ".join(words for score, words in MEANINGS.items() if score in scores)
        + " Intervals of accuracies are Wilson's; RStd is the standard deviation of recall over the letters (arXiv "
        "2309.03882); the floors need no look at the question."
    )
    return "\n\n".join(parts)


def against(baseline: str, title: str, accuracy: float, paired: dict[str, Any]) -> str:
    """One sentence that compares an accuracy with that of another evaluation over the same questions."""
    p = f", exact McNemar p = {paired['mcnemar_p']:.2g}" if "mcnemar_p" in paired else ""
    return (
        f"Against the evaluation called `{baseline}` ({accuracy - paired['difference']:.3f}), question by question, "
        f"{title}: {paired['difference']:+.3f} (95 % interval {interval(paired['ci95'])}, clustered by article{p})."
    )


def dev_part(facts: Facts) -> str:
    """The dev curve as a table, and the checkpoint that was kept."""
    rows: dict[int, dict[str, Any]] = {}
    for line in facts.history:
        if any(key.startswith("eval_") for key in line):
            rows.setdefault(line["step"], {}).update(line)
    if not rows:
        return "The run looked at no dev split."
    steps = sorted(rows)
    shown = sorted({steps[round(i * (len(steps) - 1) / max(1, CURVE - 1))] for i in range(CURVE)})

    def cells(row: dict[str, Any]) -> list[str]:
        loss = f"{row['eval_loss']:.4f}" if "eval_loss" in row else ""
        if "eval_mcq_accuracy" not in row:
            return [loss, "", "", ""]
        bounds = [row["eval_mcq_accuracy_low"], row["eval_mcq_accuracy_high"]]
        return [loss, f"{row['eval_mcq_accuracy']:.3f}", interval(bounds), row["eval_mcq_questions"]]

    lines = [[step, *cells(rows[step])] for step in shown]
    chosen = facts.settings["load_best_model_at_end"]
    if kept := facts.dev.get("best", {}):
        name = facts.dev.get("best_checkpoint") if chosen else None
        lines.append([f"kept: {name or 'the last step'}", *cells(kept)])
    left_out = f"{len(shown)} of {len(steps)} evaluations; " if len(shown) < len(steps) else ""
    why = "Dev chose the checkpoint, so its numbers are not those of a test. " if chosen else ""
    why = why if sum(step > 0 for step in steps) > 1 else "There was one checkpoint, and nothing to choose. "
    return (
        f"{why}{left_out}`history.json` has all.\n\n"
        + table(["step", "dev loss (nats a token)", "dev accuracy", "95 % interval", "questions"], lines)
        + "\n\n![Loss and dev accuracy over the steps](loss.png)"
    )


def training_part(facts: Facts) -> str:
    """Hardware, size, settings and versions."""
    manifest, settings = facts.manifest, facts.settings
    counts = manifest["parameters"]
    last = facts.history[-1] if facts.history else {}
    seconds = next((line["train_runtime"] for line in facts.history if "train_runtime" in line), None)
    packs = "packs" if settings["packing"] else "rows"
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * manifest["world_size"]
    rows = [
        ["method", facts.method],
        [
            "trained parameters",
            f"{counts['trained']:,} of {counts['total']:,} ({counts['trained'] / counts['total']:.2%})",
        ],
    ]
    if settings["use_peft"]:
        targets = settings["lora_target_modules"]
        targets = ", ".join(targets) if isinstance(targets, list) else targets
        shape = f"r {settings['lora_r']}, alpha {settings['lora_alpha']}, dropout {settings['lora_dropout']}"
        rows.append(["LoRA", f"{shape}, on {targets}"])
    rows += [
        ["hardware", f"{manifest['hardware']}; {manifest['launch']}"],
        ["time, since the run was last started", duration(seconds) if seconds else "not told"],
        ["steps", f"{last.get('step', 'not told')}, of {batch} {packs} each"],
        ["epochs", f"{last['epoch']:.2f}" if "epoch" in last else "not told"],
        ["learning rate", f"{settings['learning_rate']:g}, {settings['lr_scheduler_type']}"],
        ["max_length", f"{settings['max_length']} tokens"],
        ["loss", "on the completion alone" if settings["completion_only_loss"] else "see the recipe"],
        ["seed", settings["seed"]],
        ["code", f"git {manifest['git_revision']}" if manifest["git_revision"] else "not told"],
        [
            "versions",
            f"Python {manifest['python']}, " + ", ".join(f"{n} {v}" for n, v in ordered(manifest["versions"])),
        ],
    ]
    return table(["", ""], rows) + (
        f"\n\n`recipe.yaml` is the whole recipe (`accelerate launch sft/run.py recipe.yaml`), made from "
        f"`{manifest['recipe']}`; `run_manifest.json` holds every setting and fingerprint."
    )


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ordered(versions: dict[str, str]) -> list[tuple[str, str]]:
    """The versions, most telling first."""
    return [(name, versions[name]) for name in SHOWN_VERSIONS if name in versions]


def data_part(facts: Facts) -> str:
    """Files with their hashes, and what became of their rows."""
    parts = []
    for data in facts.manifest["datasets"]:
        weight = "" if data["weight"] == 1 else f", each row taken {data['weight']:g} times on average"
        if "sources" not in data:
            parts.append(f"`{data['name']}`{weight}: its files are not told.")
            continue
        counts = ", ".join(f"{split} {rows:,}" for split, rows in data["splits"].items())
        parts.append(
            f"`{data['name']}`{weight}: {data['read']:,} rows read, {data['kept']:,} kept, "
            f"{data['rejected']:,} rejected, {data['duplicates']:,} exact duplicates. Rows by split: {counts}. "
            + overlap_sentence(data)
        )
        rows = [
            [
                f"`{name}`",
                source.get("title", source["format"]),
                f"{source['rows']:,}" + (", as published" if is_published(name, source) else ""),
                f"`{source['sha256']}`",
            ]
            for name, source in data["sources"].items()
        ]
        parts.append(table(["file", "in the format of", "rows", "SHA-256"], rows))
    return "\n\n".join(parts)


def overlap_sentence(data: dict[str, Any]) -> str:
    """What the training split shares with the test splits of its data set."""
    if not any(split.startswith("test") for split in data["splits"]):
        return "It has no test split; what its rows share with other data was not measured."
    shared = [
        f"{row['shared']:,} by {row['by']}"
        for row in data.get("overlap", [])
        if "train" in row["splits"] and any(split.startswith("test") for split in row["splits"]) and row["shared"]
    ]
    told = ", ".join(shared) if shared else "nothing by article, figure or text" if "overlap" in data else "not told"
    return f"Its test splits were not trained on; shared by train and test: {told}."


def licence_part(facts: Facts) -> str:
    """Whose licences there are."""
    data = f"{PMC_VQA_LICENCE} (as its publisher names it)" if facts.published else "not known: no published files"
    return table(
        ["", "licence"],
        [
            [f"base model, [{facts.base}](https://huggingface.co/{facts.base})", facts.base_licence or "see its page"],
            ["training data", data],
            [
                "this model",
                facts.licence or "none was named by whoever published it; those above bind it all the same",
            ],
        ],
    )


def usage_part(facts: Facts) -> str:
    """The lines of code that load the model, and how it wants to be asked."""
    if facts.is_adapter:
        load = f"""from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{facts.repo}", dtype="bfloat16")"""
    else:
        load = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{facts.repo}", dtype="bfloat16")"""
    choices = ["Congo red", "Prussian blue", "Oil Red O", "Von Kossa"]
    question = json.dumps(user_message("Which stain shows iron in tissue?", choices, facts.answer_format))
    return f"""```python
{load}
tokenizer = AutoTokenizer.from_pretrained("{facts.repo}")
```

It was trained with prompts of this form:

```python
question = {question}
prompt = tokenizer.apply_chat_template(
    [{{"role": "user", "content": question}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=512, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


def model_card(facts: Facts) -> str:
    """README.md of a published model.

    Raises:
        UserError: the facts lack something that every run since this program writes cards has left.
    """
    try:
        pinned = f" at revision `{facts.revision}`" if facts.revision else " (no revision is known)"
        if facts.base_was_named:
            pinned += ", as its publisher calls the local copy that it was trained and evaluated with"
        merged = (
            "merged model, a LoRA adapter in the weights of" if facts.settings["use_peft"] else "full fine-tune of"
        )
        kind = "LoRA adapter for" if facts.is_adapter else merged
        rows = round(
            sum(data["weight"] * data.get("splits", {}).get("train", 0) for data in facts.manifest["datasets"])
        )
        epochs = facts.history[-1].get("epoch") if facts.history else None
        trained_on = f"{rows:,} rows" + (f" (epochs: {epochs:.3g})" if epochs else "")
        of = "of PMC-VQA" if facts.is_pmc_vqa else "of the files below"
        options = "pick one of several options" if facts.answer_format != OPEN else "answer in a few words"
        return f"""---
{metadata(facts)}
---
# {facts.repo.split("/")[1]}

A {kind} [{facts.base}](https://huggingface.co/{facts.base}){pinned}.
Fine-tuned on {trained_on} of medical multiple-choice questions {of}, with
[TRL](https://github.com/huggingface/trl)'s SFTTrainer; it answers in the format `{facts.answer_format}`.

**Not for clinical use.** A language model that was trained to {options}. It sees no image: a question about a figure
is answered from its words alone. It is meant for research on medical question answering and on fine-tuning.

## Use

{usage_part(facts)}

## Evaluation

{evaluation_part(facts)}

## Dev curve

{dev_part(facts)}

## Training

{training_part(facts)}

## Data

{data_part(facts)}

## Limits

- It reads text alone. Compare its accuracy with the floors before believing that it knows an answer.
- It was trained on questions in English with options of which one is right, and not to say that none is.
- Nothing was measured on patients, on clinical text, or on fairness between groups of people.

## Licences

{licence_part(facts)}
"""
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"run_manifest.json or an evaluation lacks {error}: train or evaluate with this version"
        ) from error
