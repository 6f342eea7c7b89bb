"""Evaluation as a user meets it: the same questions for base, adapter and merged model, and numbers that compare."""

import json

import pytest

N = 40


@pytest.fixture(scope="module")
def adapter(tiny_deepseek, tmp_path_factory):
    """A random adapter on the tiny model, saved with its tokenizer as sft/run.py saves one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sft.models import save_prompt_format

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("adapter") / "final_model"
    model = AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(model, config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_deepseek).save_pretrained(folder)
    save_prompt_format(folder, "letter_text")
    merged = folder.with_name("merged")
    model.merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(tiny_deepseek).save_pretrained(merged)
    return folder


@pytest.fixture(scope="module")
def evaluate(here, prepared, tmp_path_factory):
    """Evaluate a model on N test questions in float32; returns the path of the results."""
    out = tmp_path_factory.mktemp("eval")

    def run(model, name, *options):
        done = here(
            *("sft/evaluate.py", "--model_path", model, "--dataset_path", prepared, "--num_samples", N),
            *("--output_dir", out, "--name", name, "--dtype", "float32", *options),
        )
        assert done.returncode == 0, done.stderr
        return out / f"{name}.json"

    return run


def predictions(results):
    import pyarrow.parquet as pq

    return pq.read_table(results.with_suffix(".parquet")).to_pylist()


@pytest.fixture(scope="module")
def base_results(evaluate, tiny_deepseek):
    return evaluate(tiny_deepseek, "base")


@pytest.fixture(scope="module")
def adapter_results(evaluate, adapter, base_results):
    return evaluate(adapter, "tuned", "--baseline", base_results)


def test_results_follow_from_the_predictions(base_results):
    results, rows = json.loads(base_results.read_text()), predictions(base_results)
    right = sum(row["predicted"] == row["gold"] for row in rows)
    assert results["n"] == len(rows) == N
    assert results["accuracy"] == right / N
    low, high = results["ci95"]
    assert low <= results["accuracy"] <= high
    for row in rows:
        assert row["log_likelihoods"][row["predicted"]] == max(row["log_likelihoods"])


def test_a_merged_model_scores_as_its_adapter_does(evaluate, adapter, adapter_results, base_results):
    merged = predictions(evaluate(adapter.with_name("merged"), "merged"))
    tuned, base = predictions(adapter_results), predictions(base_results)
    for one, other in zip(merged, tuned, strict=True):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
    # The adapter is there at all.
    assert any(abs(a["log_likelihoods"][0] - b["log_likelihoods"][0]) > 1e-2 for a, b in zip(tuned, base, strict=True))


def test_paired_comparison_counts_the_questions_that_changed(adapter_results, base_results):
    paired = json.loads(adapter_results.read_text())["paired"]
    both = list(zip(predictions(adapter_results), predictions(base_results), strict=True))
    won = sum(t["predicted"] == t["gold"] != b["predicted"] for t, b in both)
    lost = sum(b["predicted"] == b["gold"] != t["predicted"] for t, b in both)
    assert (paired["only_this_right"], paired["only_baseline_right"]) == (won, lost)
    assert paired["difference"] == pytest.approx((won - lost) / N)
    assert 0 < paired["mcnemar_p"] <= 1


def test_batch_size_does_not_change_the_answers(evaluate, adapter, adapter_results):
    one_by_one = predictions(evaluate(adapter, "single", "--batch_size", 1))
    for one, other in zip(one_by_one, predictions(adapter_results), strict=True):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)


def test_a_baseline_over_other_questions_is_refused(refused, tiny_deepseek, prepared, base_results, tmp_path):
    line = refused(
        *("sft/evaluate.py", "--model_path", tiny_deepseek, "--dataset_path", prepared, "--num_samples", N - 1),
        *("--baseline", base_results, "--output_dir", tmp_path / "eval"),
    )
    assert "not the same ones" in line
    assert not (tmp_path / "eval").exists()


def test_a_model_is_asked_as_it_was_trained(refused, adapter, prepare, tmp_path):
    line = refused(
        *("sft/evaluate.py", "--model_path", adapter, "--dataset_path", prepare("--answer_format", "letter")),
        *("--output_dir", tmp_path / "eval"),
    )
    assert "prepare them with --answer_format letter_text" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model_path", "nowhere/at/all"], "does not exist"),
        (["--model_path", "recipes"], "is no model"),
        (["--dataset_path", "./nowhere"], "does not exist"),
        (["--split", "test_clean"], "it has train, dev, test"),
        (["--baseline", "LICENSE"], "not the results of an earlier"),
        (["--num_samples", "0"], "give a positive number"),
        (["--chat_template", "nowhere.jinja"], "choose one of recipes/templates"),
    ],
)
def test_bad_input_is_refused_in_one_line(refused, tiny_deepseek, prepared, tmp_path, options, words):
    line = refused(
        *("sft/evaluate.py", "--model_path", tiny_deepseek, "--dataset_path", prepared),
        *("--output_dir", tmp_path / "eval", *options),
    )
    assert words in line
    assert not (tmp_path / "eval").exists()


def test_an_adapter_without_its_base_says_which_it_needs(refused, adapter, prepared, tmp_path):
    import shutil

    orphan = shutil.copytree(adapter, tmp_path / "orphan")
    config = json.loads((orphan / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "./moved/away"
    (orphan / "adapter_config.json").write_text(json.dumps(config))
    line = refused("sft/evaluate.py", "--model_path", orphan, "--dataset_path", prepared)
    assert "is an adapter for ./moved/away" in line
