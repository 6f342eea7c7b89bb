"""Evaluation as a user meets it: the same questions for base, adapter and merged model, and numbers that compare."""

import json
import os
import shutil
from pathlib import Path

import pytest

from sft.common.command import UserError
from sft.common.data import draw, load_split
from sft.common.models import load_model, save_prompt_format
from sft.evaluation.answer_cache import Answers, base_model_of, models_of
from sft.evaluation.results import generation_score
from sft.evaluation.tasks import Task
from sft.inference.generation import Sampling
from sft.inference.likelihood import most_likely, option_log_likelihoods
from sft.inference.parsing import parse_answer

N = 40


@pytest.fixture(scope="module")
def adapter(tiny_deepseek, tmp_path_factory):
    """A random adapter on the tiny model, saved with its tokenizer as sft/run.py saves one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("adapter") / "final_model"
    model = AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(model, config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_deepseek).save_pretrained(folder)
    save_prompt_format(folder, None, "letter_text")
    merged = folder.with_name("merged")
    model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(tiny_deepseek).save_pretrained(merged)
    return folder


@pytest.fixture(scope="module")
def command_line(tiny_deepseek, prepared):
    """An evaluation of the tiny model on N test questions; options behind it may name others."""
    return "sft/evaluate.py", "--model_path", tiny_deepseek, "--dataset_path", prepared, "--num_samples", N


@pytest.fixture(scope="module")
def measure(here, command_line):
    """Run that evaluation, which must succeed, with further options; returns its output."""

    def run(*options):
        done = here(*command_line, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def evaluation_refused(refused, command_line, tmp_path):
    """The one line with which that evaluation, with further options, is refused before it writes anything."""

    def run(*options):
        line = refused(*command_line, "--output_dir", tmp_path / "eval", *options)
        assert not (tmp_path / "eval").exists()
        return line

    return run


@pytest.fixture(scope="module")
def evaluate(measure, tmp_path_factory):
    """Evaluate a model in float32; returns the folder of the evaluation."""
    out = tmp_path_factory.mktemp("eval")

    def run(model, name, *options):
        measure("--model_path", model, "--output_dir", out, "--name", name, "--dtype", "float32", *options)
        return out / name

    return run


def predictions(folder):
    import pyarrow.parquet as pq

    return pq.read_table(folder / "predictions.parquet").to_pylist()


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def same_scores(this, other, tolerance=1e-4):
    for row, expected in zip(predictions(this), predictions(other), strict=True):
        assert row["log_likelihoods"] == pytest.approx(expected["log_likelihoods"], rel=0, abs=tolerance)


WRITTEN = ("--method", "likelihood", "generation", "--max_new_tokens", 12, "--generation_seeds", 1, 2)


@pytest.fixture(scope="module")
def base_results(evaluate, tiny_deepseek):
    return evaluate(tiny_deepseek, "base", *WRITTEN, "--permutations", 4)


@pytest.fixture(scope="module")
def adapter_results(evaluate, adapter, base_results):
    return evaluate(adapter, "tuned", "--baseline", base_results)


def test_likelihood_numbers_follow_from_the_predictions(base_results):
    results, rows = results_of(base_results), predictions(base_results)
    score = results["scores"]["option_likelihood"]
    assert results["n"] == len(rows) == N
    assert score["accuracy"] == sum(row["option_likelihood_right"] for row in rows) / N
    assert score["ci95"][0] <= score["accuracy"] <= score["ci95"][1]
    for row in rows:
        answer = row["option_likelihood_answer"]
        assert row["log_likelihoods"][answer] == max(row["log_likelihoods"])
        assert row["option_likelihood_right"] == (answer == row["gold"])
    floor = sum(row["choices_only_answer"] == row["gold"] for row in rows) / N
    assert results["floors"]["choices_only"] == floor


def test_permutations_score_each_option_at_every_letter(base_results):
    score = results_of(base_results)["scores"]["option_likelihood"]["permutations"]
    rows = predictions(base_results)
    shares = [sum(a == row["gold"] for a in row["permutation_answers"]) / 4 for row in rows]
    assert score["accuracy"] == pytest.approx(sum(shares) / N)
    assert score["orders"] == 4
    several = [row["permutation_answers"] for row in rows if len(row["permutation_answers"]) > 1]
    assert score["questions_in_several_orders"] == len(several)
    same = sum(len(set(answers)) == 1 for answers in several) / len(several)
    assert score["same_option_in_all_orders"] == same
    # A random model goes by the letter, so its choice moves with the options.
    assert same < 0.5


def test_permuted_answers_are_those_of_the_question_with_its_options_moved(base_results, tiny_deepseek, prepared):
    import torch

    questions = draw(load_split(str(prepared), "test"), N, 42)
    moved = [q | {"choices": [q["choices"][(i + 1) % 4] for i in range(4)]} for q in questions]
    model, tokenizer = load_model(str(tiny_deepseek), "float32")
    scores = dict(option_log_likelihoods(model, tokenizer, moved, 16))
    texts = [q["choices"][a] for q, a in zip(moved, most_likely([scores[i] for i in range(N)]), strict=True)]
    rows = predictions(base_results)
    assert texts == [q["choices"][r["permutation_answers"][1]] for q, r in zip(questions, rows, strict=True)]
    assert model.dtype == torch.float32


def test_generation_numbers_follow_from_the_texts(base_results, prepared):
    score, rows = results_of(base_results)["scores"]["generation"], predictions(base_results)
    questions = draw(load_split(str(prepared), "test"), N, 42)
    rights = []
    for q, row in zip(questions, rows, strict=True):
        assert row["id"] == q["id"]
        answers = [
            parse_answer(text, q["choices"], tokens == 12)
            for text, tokens in zip(row["generation_texts"], row["generation_tokens"], strict=True)
        ]
        assert [a.index for a in answers] == row["generation_answers"]
        assert [a.outcome for a in answers] == row["generation_outcomes"]
        rights.append(sum(a.index == q["gold"] for a in answers) / 2)
    assert score["accuracy"] == pytest.approx(sum(rights) / N)
    assert sum(score["outcomes"].values()) == pytest.approx(1)
    assert [seed["seed"] for seed in score["seeds"]] == [1, 2]
    # Two passes are drawn differently.
    assert any(len(set(row["generation_texts"])) == 2 for row in rows)
    expected = {"tokens": 12, "accuracy": score["accuracy"], "truncated": score["outcomes"]["truncated"]}
    assert score["by_token_budget"][-1] == pytest.approx(expected)


def test_a_smaller_budget_truncates_longer_answers():
    questions = [
        {"id": str(i), "question": "Q?", "choices": ["Lung", "Heart"], "gold": 0, "answer_format": "text"}
        for i in range(3)
    ]
    task = Task("g", questions, Sampling(max_new_tokens=8))
    texts = [("Lung", 2, False), ("<think>Or?</think> Lung", 6, False), ("<think>Hm", 8, True)]
    fields = ("text", "tokens", "hit_limit")
    answers = {("g", str(i)): dict(zip(fields, values, strict=True)) for i, values in enumerate(texts)}
    score = generation_score([task], answers, {})
    budgets = [(b["tokens"], round(3 * b["accuracy"]), round(3 * b["truncated"])) for b in score["by_token_budget"]]
    assert budgets == [(2, 1, 2), (4, 1, 2), (8, 2, 1)]
    assert score["outcomes"] == {"answered": pytest.approx(2 / 3), "unparsed": 0, "truncated": pytest.approx(1 / 3)}
    assert score["accuracy_where_answered"] == 1


def test_a_merged_model_scores_as_its_adapter_does(evaluate, adapter, adapter_results, base_results):
    same_scores(evaluate(adapter.with_name("merged"), "merged"), adapter_results)
    pairs = zip(predictions(adapter_results), predictions(base_results), strict=True)
    assert any(abs(a["log_likelihoods"][0] - b["log_likelihoods"][0]) > 1e-2 for a, b in pairs)  # it does something


def test_an_adapter_on_the_hub_is_that_adapter(evaluate, adapter, adapter_results):
    """Out of the Hub's cache, which is all that can be had offline; also how it was asked, and its commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = Path(os.environ["HF_HOME"], "hub/models--someone--tuned")
    shutil.copytree(adapter, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    # So the cache remembers that the Hub has no such file: an adapter has no config.json.
    (repository / ".no_exist" / commit).mkdir(parents=True)
    (repository / ".no_exist" / commit / "config.json").touch()
    there = evaluate("someone/tuned", "from-hub")
    assert f"someone/tuned@{commit}" in results_of(there)["fingerprint"]["model"]
    assert results_of(there)["commit"] == commit
    same_scores(there, adapter_results, tolerance=0)


def test_results_name_model_base_and_commits_and_whose_each_fingerprint_is(adapter_results, tiny_deepseek, adapter):
    results = results_of(adapter_results)
    assert results["base_model"] == {"name": tiny_deepseek.name, "commit": None}
    own, base = results["fingerprint_of"]["model"]
    assert (own["name"], base["name"]) == (adapter.name, tiny_deepseek.name)
    assert own["fingerprint"] + base["fingerprint"] == results["fingerprint"]["model"]
    assert any(part.startswith("adapter_model.safetensors:") for part in own["fingerprint"])
    assert results["fingerprint_of"]["questions"] == "split test of PMC-VQA-Processed"
    assert results["fingerprint_of"]["chat_template"] == "the model's own"
    kept = json.loads((adapter_results / "answers/fingerprint.json").read_text())
    assert kept == {**results["fingerprint"], "fingerprint_of": results["fingerprint_of"]}


def test_the_base_of_a_run_is_the_one_that_its_records_name(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "final_model")
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "run_manifest.json").write_text(json.dumps({"base_model": {"name": "someone/base", "revision": commit}}))
    models = models_of(str(folder))
    assert base_model_of(str(folder), models) == {"name": "someone/base", "commit": commit}
    (folder / "run_manifest.json").write_text("{}")  # of an older version
    assert base_model_of(str(folder), models)["name"] == models[-1]["name"]


def test_answers_that_were_scored_otherwise_are_not_used_again(tmp_path):
    (tmp_path / "fingerprint.json").write_text('{"model": []}')  # of a version that did not name its scoring
    Answers(tmp_path, {"model": [], "scoring_version": 1}, {}, overwrite=False)
    with pytest.raises(UserError, match=r"other scoring .*--overwrite"):
        Answers(tmp_path, {"model": [], "scoring_version": 2}, {}, overwrite=False)


def test_an_evaluation_of_an_older_version_is_continued_and_compared(measure, here, tmp_path):
    options = ("--num_samples", 4, "--output_dir", tmp_path, "--name", "run")
    measure(*options)
    for file in (tmp_path / "run/answers/fingerprint.json", tmp_path / "run/results.json"):
        old = json.loads(file.read_text())
        for key in ("fingerprint_of", "commit", "base_model"):
            old.pop(key, None)
        file.write_text(json.dumps(old))
    assert "+0.000" in here("sft/compare.py", tmp_path / "run", tmp_path / "run").stdout
    assert "all 8 answers found" in measure(*options)


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_quantised_model_answers_nearly_as_in_float32(evaluate, tiny_deepseek, base_results, kind):
    rows = predictions(evaluate(tiny_deepseek, kind, "--quantization", kind, "--no-choices_only"))
    pairs = zip(rows, predictions(base_results), strict=True)
    gaps = [abs(a["log_likelihoods"][0] - b["log_likelihoods"][0]) for a, b in pairs]
    assert 0 < max(gaps) < 0.5


def test_paired_comparison_counts_the_questions_that_changed(here, adapter_results, base_results):
    paired = results_of(adapter_results)["paired"]["option_likelihood"]
    both = list(zip(predictions(adapter_results), predictions(base_results), strict=True))
    won = sum(t["option_likelihood_right"] > b["option_likelihood_right"] for t, b in both)
    lost = sum(t["option_likelihood_right"] < b["option_likelihood_right"] for t, b in both)
    assert (paired["won"], paired["lost"]) == (won, lost)
    assert paired["difference"] == pytest.approx((won - lost) / N)
    assert 0 < paired["mcnemar_p"] <= 1
    # The same from the finished folders, and turned round.
    assert f" {won} won, {lost} lost" in here("sft/compare.py", adapter_results, base_results).stdout
    assert f" {lost} won, {won} lost" in here("sft/compare.py", base_results, adapter_results).stdout


def test_batch_size_does_not_change_the_answers(evaluate, adapter, adapter_results):
    same_scores(evaluate(adapter, "single", "--batch_size", 1, "--no-choices_only"), adapter_results)


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in ("results.json", "predictions.parquet", "report.html")}


def test_a_stopped_evaluation_continues_and_gives_the_same_bytes(measure, tmp_path):
    options = ("--output_dir", tmp_path, "--name", "run", "--num_samples", 20, "--batch_size", 4)
    options = (*options, "--method", "likelihood", "generation", "--max_new_tokens", 6)
    measure(*options)
    unbroken = bytes_of(tmp_path / "run")
    log = tmp_path / "run/answers/answers-0.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 60
    # Killed in the middle of a line, in the middle of a batch, in the last of three passes.
    log.write_text("".join(lines[:49]) + lines[49][:30])
    (tmp_path / "run/results.json").unlink()
    output = measure(*options)
    assert "20 questions, 3 passes (likelihood; choices only; generation" in output
    assert "60 answers wanted, 49 found" in output
    assert bytes_of(tmp_path / "run") == unbroken
    assert "all 60 answers found" in measure(*options)
    assert bytes_of(tmp_path / "run") == unbroken


def test_answers_of_another_model_or_with_other_options_are_not_taken(
    measure, refused, command_line, adapter, tmp_path
):
    options = ("--num_samples", 4, "--output_dir", tmp_path, "--name", "run")
    measure(*options)
    before = bytes_of(tmp_path / "run")
    for changed, message in (
        (("--model_path", adapter), "other weights"),
        (("--batch_size", 2), "other options"),
        (("--seed", 1), "other questions (another --split"),
    ):
        assert message in refused(*command_line, *options, *changed)
    assert bytes_of(tmp_path / "run") == before
    measure(*options, "--batch_size", 2, "--overwrite")
    assert bytes_of(tmp_path / "run") != before


def test_no_earlier_result_is_lost_unless_the_user_says_so(measure, refused, command_line, tmp_path):
    options = ("--num_samples", 4, "--output_dir", tmp_path, "--name", "run", "--max_new_tokens", 4)
    both = (*options, "--method", "likelihood", "generation")
    measure(*options, "--method", "likelihood")
    assert "holds also choices only; likelihood" in refused(*command_line, *options, "--method", "generation")
    measure(*both)
    assert set(results_of(tmp_path / "run")["scores"]) == {"option_likelihood", "generation"}
    # A folder of somebody else is not touched.
    (tmp_path / "mine/answers").mkdir(parents=True)
    (tmp_path / "mine/answers/thesis.txt").write_text("...")
    assert "no evaluation's" in refused(*command_line, *options, "--name", "mine", "--overwrite")
    assert (tmp_path / "mine/answers/thesis.txt").exists()
    # Damage is reported, not guessed around.
    (tmp_path / "run/answers/answers-0.jsonl").write_text("what?\n")
    assert "is damaged: pass --overwrite" in refused(*command_line, *both)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(id=rows[0]["id"]), "stands 2 times"),
        (lambda rows: rows[1].update(gold=7), "number 7 is said to be right"),
    ],
    ids=["id twice", "no such option"],
)
def test_rows_that_cannot_be_scored_are_refused(evaluation_refused, prepared, tmp_path, change, message):
    import pyarrow.parquet as pq

    folder = shutil.copytree(prepared, tmp_path / "changed")
    (file,) = (folder / "test").glob("*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    change(rows)
    file.unlink()  # another name, so that no cache knows the file
    pq.write_table(table.from_pylist(rows, table.schema), file.with_name(f"{len(message)}.parquet"))
    card = folder / "README.md"
    card.write_text(card.read_text().replace(file.name, f"{len(message)}.parquet"))
    assert message in evaluation_refused("--dataset_path", folder, "--num_samples", 10_000)


def test_two_processes_give_the_result_of_one(measure, command, command_line, tmp_path):
    import torch

    options = ("--num_samples", 22, "--batch_size", 4, "--method", "likelihood", "generation")
    options = (*options, "--max_new_tokens", 6, "--name", "run")
    launch = ("accelerate", "launch", "--config_file", "accelerate_configs/ddp.yaml", "--num_processes", 2)
    done = command(*launch, *command_line, *options, "--output_dir", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two/run/answers").glob("answers-*.jsonl"))) == 2
    # Sums have the same order: the launcher gives each process one thread, as tests/conftest.py gives this one.
    assert torch.get_num_threads() == 1
    measure(*options, "--output_dir", tmp_path / "one")
    assert bytes_of(tmp_path / "one/run") == bytes_of(tmp_path / "two/run")


def test_a_log_file_holds_no_line_for_each_step_of_a_progress_bar(command, command_line, tmp_path):
    done = command(*command_line, "--num_samples", 12, "--batch_size", 1, "--output_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Asking" not in done.stderr  # before a minute has passed


def test_the_report_is_one_file_that_shows_every_number(base_results, adapter_results):
    page = (base_results / "report.html").read_text()
    for title in ("Recall by letter", "Calibration", "Token budget", "most confident errors"):
        assert title in page
    assert page.count("<svg") == 4
    assert "Against base" in (adapter_results / "report.html").read_text()
    score = results_of(base_results)["scores"]["option_likelihood"]
    assert f"{score['accuracy']:.3f}" in page
    assert "<script" not in page
    assert not [word for word in page.split('"') if word.startswith("http") and "w3.org" not in word]


def test_a_baseline_over_other_questions_is_refused(evaluation_refused, refused, base_results, tmp_path):
    line = evaluation_refused("--num_samples", N - 1, "--baseline", base_results)
    assert "do not answer the same questions" in line
    assert "not a finished evaluation" in refused("sft/compare.py", base_results, tmp_path)


def test_a_general_medical_benchmark_evaluates_with_the_same_command(here, measure, shared_rows, tmp_path):
    data = tmp_path / "MedMCQA"
    source = shared_rows.parent / "medmcqa/dev.jsonl"
    done = here("data_prep/prepare.py", "--dataset_path", source, "--output_dir", data)
    assert done.returncode == 0, done.stderr
    options = ("--split", "dev", "--num_samples", 8, "--output_dir", tmp_path, "--name", "run")
    measure("--dataset_path", data, *options)
    assert results_of(tmp_path / "run")["n"] == 8


def test_a_model_is_asked_as_it_was_trained(evaluation_refused, adapter, prepare):
    line = evaluation_refused("--model_path", adapter, "--dataset_path", prepare("--answer_format", "letter"))
    assert "prepare them with --answer_format letter_text" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model_path nowhere/at/all", "does not exist"),
        ("--model_path recipes", "is no model"),
        ("--dataset_path ./nowhere", "does not exist"),
        ("--split test_clean", "it has train, dev, test"),
        ("--baseline LICENSE", "not a finished evaluation"),
        ("--num_samples 0", "give a positive number"),
        ("--method generation --permutations 4", "goes with --method likelihood"),
        ("--generation_seeds -1", "give a number from 0"),
        ("--request_timeout nan", "give a positive number"),
        (f"--name {'x' * 300}", "give a plain, short name"),
        ("--permutations 11", "give 1 (as the questions stand) to 10"),
        ("--method generation --max_new_tokens 2048", "and the model reads 2048: lower --max_new_tokens to"),
        ("--temperature -1", "give 0 (greedy)"),
        ("--temperature 0 --generation_seeds 1 2", "every seed the same text"),
        ("--name ../elsewhere", "give a plain, short name"),
        ("--base_url http://127.0.0.1:1/v1", "goes with --backend openai"),
        ("--chat_template nowhere.jinja", "choose one of recipes/templates"),
    ],
)
def test_bad_input_is_refused_in_one_line(evaluation_refused, options, message):
    assert message in evaluation_refused(*options.split())


def test_an_adapter_without_its_base_says_which_it_needs(evaluation_refused, adapter, tmp_path):
    orphan = shutil.copytree(adapter, tmp_path / "orphan")
    config = json.loads((orphan / "adapter_config.json").read_text())
    (orphan / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./moved/away"}))
    assert "is an adapter for ./moved/away" in evaluation_refused("--model_path", orphan)
