"""The model card: every number in it is one that a run or an evaluation left, and what is unknown is said to be."""

import ast
import copy
import json
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from sft.common.command import UserError
from sft.common.prompts import ANSWER_FORMATS, OPEN, user_message
from sft.publishing.card import Facts, model_card
from sft.training.config import resolve

FLOORS = {"majority_letter": 0.319, "longest_option": 0.245, "choices_only": 0.301}
RESULTS = {
    "name": "tuned",
    "split": "test_clean",
    "dataset": "PMC-VQA-Processed",
    "files": {"test_clean.csv": 2000},
    "n": 2000,
    "floors": FLOORS,
    "scores": {
        "option_likelihood": {
            "accuracy": 0.4217,
            "n": 2000,
            "ci95": [0.4001, 0.4435],
            "balanced_accuracy": 0.4022,
            "rstd": 0.081,
            "standard_error_clustered": 0.0113,
            "articles": 1700,
            "recall_by_letter": {"A": 0.51, "B": 0.44, "C": 0.36, "D": 0.3},
            "calibration": {"ece": 0.042},
            "permutations": {
                "orders": 4,
                "accuracy": 0.4102,
                "ci95": [0.3888, 0.4319],
                "standard_error_clustered": 0.0101,
                "same_option_in_all_orders": 0.38,
                "questions_in_several_orders": 1_900,
            },
        },
        "generation": {
            "accuracy": 0.3151,
            "n": 2000,
            "ci95": [0.2951, 0.3358],
            "balanced_accuracy": 0.3,
            "rstd": 0.1,
            "standard_error_clustered": None,
            "articles": 0,
            "recall_by_letter": {"A": 0.4, "B": 0.2},
            "sampling": {"max_new_tokens": 32, "temperature": 0.6, "top_p": 0.95},
            "seeds": [{"seed": 42, "accuracy": 0.3151}],
            "outcomes": {"answered": 0.97, "unparsed": 0.02, "truncated": 0.01},
            "tokens": {"mean": 12.3},
        },
    },
    "paired": {
        "baseline": "base",
        "option_likelihood": {
            "difference": 0.0811,
            "ci95": [0.06, 0.102],
            "mcnemar_p": 1.3e-9,
            "won": 310,
            "lost": 148,
        },
    },
    "fingerprint": {"options": {"dtype": "bfloat16", "quantization": "8bit"}},
}
SHA = "ab" * 32
DATA = {
    "name": "PMC-VQA-Processed",
    "weight": 1.0,
    "sources": {
        "train.csv": {"format": "pmc_vqa_v1", "sha256": SHA, "rows": 176_948},
        "test_clean.csv": {"format": "pmc_vqa_v1", "sha256": "cd" * 32, "rows": 2000},
    },
    "splits": {"train": 174_900, "dev": 2000, "test_clean": 2000},
    "overlap": [
        {"splits": ["train", "test_clean"], "by": "article", "shared": 12, "rows": [30, 20]},
        {"splits": ["train", "dev"], "by": "article", "shared": 0, "rows": [0, 0]},
    ],
    **{"read": 178_948, "kept": 178_900, "rejected": 40, "duplicates": 8},
}


@pytest.fixture(scope="module")
def facts() -> Facts:
    """What the main recipe would leave."""
    manifest = {
        "recipe": "pmcvqa.yaml",
        "settings": resolve(["recipes/pmcvqa.yaml"]).for_world_size(1).values,
        "datasets": [DATA],
        "hardware": "1 x NVIDIA A100-SXM4-40GB, 39 GiB each",
        "launch": "one process",
        "world_size": 1,
        "git_revision": "0123abc",
        "python": "3.11.7",
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "parameters": {"total": 8_072_204_288, "trained": 41_943_040},
    }
    dev = {"eval_mcq_accuracy_low": 0.3, "eval_mcq_accuracy_high": 0.4, "eval_mcq_questions": 500}
    history = [
        {"step": 10, "loss": 1.2, "epoch": 0.1},
        *({"step": n, "eval_loss": 1 / (n + 1), "eval_mcq_accuracy": 0.35, **dev} for n in range(0, 5000, 500)),
        {"step": 4731, "epoch": 3.0, "train_runtime": 30_960.0},
    ]
    return Facts(
        repo="jane/pmc-vqa-8b",
        base="deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        revision="6a6f4aa4197940add57724a7707d069478df56b1",
        is_adapter=True,
        answer_format="letter_text",
        licence="cc-by-sa-4.0",
        base_licence="mit",
        manifest=manifest,
        dev={"best_checkpoint": "checkpoint-4500", "best": {"eval_loss": 0.5, "eval_mcq_accuracy": 0.36, **dev}},
        history=history,
        evaluations=[RESULTS],
    )


def test_the_card_states_what_was_measured(facts):
    card = model_card(facts)
    for stated in (
        *("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "6a6f4aa4197940add57724a7707d069478df56b1", SHA),
        *("Fine-tuned on 174,900 rows (epochs: 3)", "Dev chose the checkpoint", "8 of 10 evaluations"),
        *("2000 questions of the test_clean split", "test_clean.csv (2000)", "dtype bfloat16, quantization 8bit"),
        *("| **option likelihood** | **0.422** | 0.400 to 0.444 |", "| floor: majority letter | 0.319 |"),
        *("| 0.0113 | 0.402 | 0.081 | 0.042 |", "| average of 4 permutations | 0.410 | 0.389 to 0.432 |"),
        *("called `base`, question by question", "| baseline | difference | 95 % interval | McNemar p |"),
        "| option likelihood | 0.341 | +0.081 | +0.060 to +0.102 | 1.3e-09 | 310 won, 148 lost |",
        *("recall by letter A 0.51, B 0.44", "clustered by 1700 articles", "temperature 0.6, top_p 0.95; seeds 42"),
        *("the same option in all permutations for 38.0% of 1,900 questions", "answered 97.0%"),
        *("41,943,040 of 8,072,204,288 (0.52%)", "NVIDIA A100-SXM4-40GB", "8 h 36 min", "4731, of 8 packs each"),
        *("0.0002, cosine", "8-bit LoRA", "git 0123abc", "kept: checkpoint-4500", "trl 1.16.0"),
        *("178,948 rows read, 178,900 kept, 40 rejected", "176,948, as published"),
        *("Not for clinical use", "It sees no image", "CC BY-SA", "cc-by-sa-4.0", "mit"),
        'AutoPeftModelForCausalLM.from_pretrained("jane/pmc-vqa-8b"',
    ):
        assert stated in card
    assert "Its test splits were not trained on; shared by train and test: 12 by article." in card
    assert card.count("\n| ") < 70  # a long curve is shown by a few of its rows
    assert "| 4500 |" in card


def test_a_score_that_does_not_beat_the_floors_is_marked_as_such(facts):
    card = model_card(facts)
    assert "**By generation it is not shown to be better than the floor majority letter**" in card
    assert "**By option likelihood" not in card


def test_the_code_in_the_card_is_code(facts):
    for card in (model_card(facts), model_card(replace(facts, is_adapter=False, answer_format="open"))):
        blocks = [block.partition("```")[0] for block in card.split("```python\n")[1:]]
        assert len(blocks) == 2
        for block in blocks:
            compile(block, "card", "exec")


def test_the_example_asks_as_training_did(facts):
    """To the character: the prompt of the card is the one that sft/common/prompts.py writes."""
    for answer_format in (*ANSWER_FORMATS, OPEN):
        card = model_card(replace(facts, answer_format=answer_format))
        (line,) = [line for line in card.splitlines() if line.startswith("question = ")]
        choices = ["Congo red", "Prussian blue", "Oil Red O", "Von Kossa"]
        expected = user_message("Which stain shows iron in tissue?", choices, answer_format)
        assert ast.literal_eval(line.removeprefix("question = ")) == expected


def test_the_hub_reads_the_evaluation_from_the_metadata(facts, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(model_card(facts), encoding="utf-8")
    data = ModelCard.load(file).data
    assert (data.base_model, data.library_name, data.license) == (facts.base, "peft", "cc-by-sa-4.0")
    assert data.datasets == ["xmcmic/PMC-VQA"]
    likelihood, generation = data.eval_results
    assert (likelihood.dataset_type, likelihood.dataset_split) == ("xmcmic/PMC-VQA", "test_clean")
    assert (likelihood.metric_value, generation.metric_value) == (0.4217, 0.3151)
    assert likelihood.metric_args == {"n": 2000, "ci95": [0.4001, 0.4435], "floors": FLOORS}


def test_data_that_only_looks_like_pmc_vqa_is_not_called_so(facts):
    manifest = copy.deepcopy(facts.manifest)
    manifest["datasets"][0]["sources"]["train.csv"]["rows"] = 963
    card = model_card(replace(facts, manifest=manifest))
    assert "datasets" not in yaml.safe_load(card.split("---\n")[1])
    assert "of medical multiple-choice questions of the files below" in card
    assert "963, as published" not in card


def test_the_licence_of_a_mixture_is_stated_for_the_part_that_is_known(facts):
    manifest = copy.deepcopy(facts.manifest)
    manifest["datasets"][0]["sources"]["own.jsonl"] = {"format": "medmcqa", "rows": 10, "sha256": "ab"}
    card = model_card(replace(facts, manifest=manifest))
    assert "| training data | PMC-VQA: CC BY-SA (as its publisher names it); other files: not known |" in card


def test_unknown_facts_are_called_unknown(facts):
    manifest = {**facts.manifest, "git_revision": None, "datasets": [{"name": "someone/data", "weight": 0.5}]}
    card = model_card(
        replace(facts, evaluations=[], history=[], dev={}, licence=None, base_licence=None, manifest=manifest)
    )
    for words in (
        *("was not evaluated on a test split", "looked at no dev split", "its files are not recorded", "see its page"),
        *("each row taken 0.5 times on average", "none was named by whoever published it"),
    ):
        assert words in card
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "other"
    assert "model-index" not in header


def test_the_card_says_when_dev_chose_nothing_and_when_an_adapter_was_measured(facts):
    settings = {**facts.settings, "load_best_model_at_end": False}
    card = model_card(replace(facts, manifest={**facts.manifest, "settings": settings}, is_adapter=False))
    assert "Dev chose" not in card
    assert "| kept: the last step |" in card
    assert "before merging" not in card
    assert "measured with the adapter, before merging" in model_card(replace(facts, evaluated_before_merging=True))


def test_a_base_that_the_publisher_named_and_questions_that_were_drawn_are_stated(facts):
    drawn = {**RESULTS, "n": 100, "questions_in_split": 2000}
    card = model_card(replace(facts, base_was_named=True, evaluations=[drawn]))
    assert "by which its publisher names the local folder that the run used" in card
    assert "100 questions, drawn from the 2000 of the test_clean split" in card
    assert "its publisher calls" not in model_card(facts)


def test_a_base_that_is_stored_quantised_is_stated(facts):
    settings = {**facts.settings, "load_in_8bit": False}
    manifest = {**facts.manifest, "settings": settings}
    card = model_card(replace(facts, manifest=manifest, stored_quantisation="4-bit"))
    assert "| method | LoRA on a base that is stored quantised (4-bit) |" in card


def test_a_model_that_transformers_4_computes_otherwise_says_so(facts):
    words = "It needs transformers 5: older versions read another rotary embedding"
    assert words in model_card(replace(facts, older_versions_read_it=False))
    assert words not in model_card(facts)


@pytest.mark.parametrize("is_adapter", [True, False])
def test_a_class_that_the_auto_class_would_not_take_is_named_in_the_code(facts, is_adapter):
    card = model_card(replace(facts, model_class="Qwen3_5ForConditionalGeneration", is_adapter=is_adapter))
    code = card.split("```python\n")[1].partition("```")[0]
    compile(code, "card", "exec")
    assert "import AutoTokenizer, Qwen3_5ForConditionalGeneration" in code
    assert ("PeftModel.from_pretrained(base" in code) == is_adapter
    assert (f'"{facts.base}", revision="{facts.revision}"' in code) == is_adapter
    assert "ForCausalLM" not in code


def test_a_data_set_of_this_machine_is_named_without_its_folder(facts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/PMC-VQA").mkdir(parents=True)
    for local in ("outputs/quickstart/PMC-VQA", "outputs/PMC-VQA"):
        manifest = {**facts.manifest, "datasets": [{**DATA, "name": local}]}
        card = model_card(replace(facts, manifest=manifest, evaluations=[{**RESULTS, "dataset": local}]))
        assert "outputs" not in card
        assert yaml.safe_load(card.split("---\n")[1])["model-index"][0]["results"][0]["dataset"]["name"].startswith(
            "PMC-VQA, test_clean.csv"
        )
    card = model_card(replace(facts, evaluations=[{**RESULTS, "dataset": "jane/PMC-VQA@0123abc"}]))
    assert "test_clean split of jane/PMC-VQA@0123abc" in card


def test_facts_of_an_older_run_are_refused_in_words(facts):
    manifest = {key: value for key, value in facts.manifest.items() if key != "parameters"}
    with pytest.raises(UserError, match="lacks 'parameters': train or evaluate with this version"):
        model_card(replace(facts, manifest=manifest))


def test_the_recipe_that_travels_trains_the_same(facts, tmp_path):
    pushing = ("--push_to_hub", "yes", "--hub_model_id", "jane/x")
    words = ["recipes/pmcvqa.yaml", "--learning_rate", "1e-4", "--max_steps", "7"]
    settings = resolve(words).for_world_size(1)
    pushed = resolve([*words, *pushing]).for_world_size(1)
    file = tmp_path / "recipe.yaml"
    file.write_text(pushed.as_recipe(), encoding="utf-8")
    again = resolve([str(file)]).for_world_size(1)
    assert again.values == settings.values
    assert again.learning_rate == 1e-4
    assert yaml.safe_load(settings.as_recipe("0123abc"))["model_revision"] == "0123abc"


def test_the_recipe_that_travels_names_no_place_of_this_machine():
    overrides = ("--dataset_name", "/scratch/jane/PMC-VQA-Processed", "--output_dir", "~/runs/first")
    recipe = yaml.safe_load(resolve(["recipes/pmcvqa.yaml", *overrides, "--dry_run", "yes"]).as_recipe())
    assert (recipe["dataset_name"], recipe["output_dir"]) == ("PMC-VQA-Processed", "first")
    assert "dry_run" not in recipe
    assert json.dumps(recipe).count("jane") == 0
