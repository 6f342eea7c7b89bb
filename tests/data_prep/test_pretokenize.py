"""Tokens made during preparation are those that SFTTrainer would have made, and say for whom they were made."""

import csv
import json

import pytest

TEMPLATES = {"deepseek": "recipes/templates/deepseek_r1.jinja", "smollm2": "recipes/templates/smollm2.jinja"}

# Texts that a template or a tokenizer could take for something else.
ODD = [
    "What do <think> and </think> mean?",
    "Is <｜Assistant｜> or <|im_start|>user a token?",
    "Is p < 0.05 in [1] and {2}?",
    "Which µ-opioid receptor – ‘MOR’ – is 受容体?",
    "Which   one\nis it?",
]


@pytest.fixture(scope="module")
def odd_rows(sample, tmp_path_factory):
    """The sample's training rows, and odd ones."""
    file = tmp_path_factory.mktemp("odd") / "train.csv"
    with open(sample / "train.csv", encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    options = ["yes < no", "A: yes < no", "B: [2]", "C: </s>", "D: <｜Assistant｜>", "A"]
    rows += [[f"PMC{i}_F1.jpg", question, *options] for i, question in enumerate(ODD)]
    with open(file, "w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows(rows)
    return file


@pytest.fixture(scope="module")
def models(tiny_deepseek, embedded_model):
    return {"deepseek": tiny_deepseek, "smollm2": embedded_model}


@pytest.fixture(scope="module")
def pretokenize(here, models, odd_rows, tmp_path_factory):
    """Prepare rows with tokens for a model family; returns the folder."""

    def run(family, *options, rows=odd_rows):
        folder = tmp_path_factory.mktemp(family) / "P"
        done = here(
            *("data_prep/prepare.py", "--dataset_path", rows, "--output_dir", folder, "--pretokenize", models[family]),
            # Few rows: those that the tests spoil or find too long are more than one in a hundred.
            *("--chat_template", TEMPLATES[family], "--max_rejected", "0.1", *options),
        )
        assert done.returncode == 0, done.stderr
        return folder

    return run


@pytest.mark.parametrize("family", TEMPLATES)
def test_tokens_are_those_of_sfttrainer_row_by_row(family, pretokenize, models, odd_rows, tmp_path):
    """TRL's own preparation, with our template, labels the completion's tokens and nothing else."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from sft.common.models import load_tokenizer

    why = tmp_path / "why.jsonl"
    rationales = [{"id": f"train-{i}", "reasoning": f"Step {i}.\n\nSo."} for i in range(99)]
    why.write_text("\n".join(map(json.dumps, rationales)))
    # SmolLM2 has no place for reasoning.
    options = ["--add_reasoning", why] if family == "deepseek" else []
    splits = load_dataset(str(pretokenize(family, *options)))
    rows = [*splits["train"], *splits["dev"]]
    with open(odd_rows, encoding="utf-8", newline="") as lines:
        assert len(rows) == len(list(csv.DictReader(lines))) - 3  # the sample's faulty rows
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(models["deepseek"]),  # it reads nothing here
        args=SFTConfig(str(tmp_path / "out"), use_cpu=True, report_to="none", max_length=None),
        train_dataset=splits["train"].select_columns(["prompt", "completion"]),
        eval_dataset=splits["dev"].select_columns(["prompt", "completion"]),
        processing_class=load_tokenizer(str(models[family]), TEMPLATES[family]),
    )
    prepared = [*trainer.train_dataset, *trainer.eval_dataset]
    for ours, theirs in zip(rows, prepared, strict=True):
        assert ours["input_ids"] == theirs["input_ids"], ours["question"]
        assert ours["labels"] == theirs["labels"], ours["question"]


def test_rows_beyond_max_length_leave_train_and_dev_and_are_counted(pretokenize, sample):
    from datasets import load_dataset

    uncut = load_dataset(str(pretokenize("smollm2", rows=sample)))
    lengths = sorted(len(ids) for split in ("train", "dev") for ids in uncut[split]["input_ids"])
    limit = lengths[-4] - 1  # a handful is longer
    folder = pretokenize("smollm2", "--max_length", limit, rows=sample)
    report = json.loads((folder / "report.json").read_text())
    cut = load_dataset(str(folder))
    counted = report["longer_than_max_length"]
    for split in ("train", "dev"):
        kept = [row for row in uncut[split] if len(row["input_ids"]) <= limit]
        assert cut[split].to_list() == kept  # no completion is cut
        assert counted.get(split, 0) == len(uncut[split]) - len(kept)
    assert counted.get("train", 0) + counted.get("dev", 0) >= 4
    assert len(cut["test"]) == len(uncut["test"])  # a test set is never thinned
    # With several orders a question, the share of rows that are too long is still a share of rows.
    limit = sorted(map(len, uncut["train"]["input_ids"]))[-3] - 1
    folder = pretokenize("smollm2", "--max_length", limit, "--shuffle_choices", 24, rows=sample)
    report = json.loads((folder / "report.json").read_text())
    assert report["longer_than_max_length"]["train"] >= 24


def test_tokens_for_another_model_are_refused_before_it_loads(refused, pretokenize, tiny_deepseek, tmp_path):
    folder = pretokenize("smollm2")
    line = refused(
        *("sft/run.py", "recipes/pmcvqa.yaml", "--use_cpu", "yes", "--model_name_or_path", tiny_deepseek),
        *("--dataset_name", folder, "--output_dir", tmp_path / "out"),
    )
    assert "tokens for another tokenizer or chat template" in line
    model = ("--tokenizer", tiny_deepseek, "--chat_template", TEMPLATES["deepseek"])
    assert "tokens for another model" in refused("data_prep/preview.py", folder, *model)


def test_preview_marks_the_trained_tokens(here, prepared, tiny_deepseek):
    done = here("data_prep/preview.py", prepared, "--tokenizer", tiny_deepseek, "-n", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--- train-") == 2
    trained = done.stdout.split("[[")[1].split("]]")[0]
    assert trained.startswith("</think>\n\n")
    assert trained.endswith("<｜end▁of▁sentence｜>")
    assert done.stdout.index("<｜Assistant｜><think>\n[[") > 0


def test_preview_colours_the_trained_tokens_on_a_terminal(smollm2_tokenizer):
    from data_prep.preview import RESET
    from sft.common.display import GREEN, marked

    ids = smollm2_tokenizer("Question: iron?")["input_ids"]
    mask = [0] * (len(ids) - 2) + [1, 1]
    text = marked(smollm2_tokenizer, ids, mask, colour=True)
    assert text.count(GREEN) == text.count(RESET) == 1
    assert text.replace(GREEN, "").replace(RESET, "") == "Question: iron?"
