"""Mixtures of prepared data sets."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sft.common.command import UserError
from sft.common.data import load_mixture, load_split
from sft.training.config import Settings, resolve


def test_a_weight_is_how_often_each_row_is_taken(prepared, prepare):
    other = prepare("--max_samples", 100)
    mixture = load_mixture({str(prepared): 1, str(other): 0.5}, "train", seed=1)
    ids = list(load_mixture({str(prepared): 1}, "train", seed=1)["id"])
    half = len(load_mixture({str(other): 1}, "train", seed=1)) // 2
    assert list(mixture["id"])[: len(ids)] == ids
    assert len(mixture) == len(ids) + half
    doubled = Counter(load_mixture({str(prepared): 2.5}, "train", seed=1)["id"])
    assert set(doubled) == set(ids)
    assert set(doubled.values()) == {2, 3}
    assert doubled.total() == round(2.5 * len(ids))


def test_a_mixture_is_the_same_every_time_and_differs_by_seed(prepared):
    drawn = [list(load_mixture({str(prepared): 0.3}, "train", seed=seed)["id"]) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_data_sets_that_ask_differently_are_not_mixed(prepared, prepare):
    other = prepare("--answer_format", "letter")
    with pytest.raises(UserError, match=r"answer_format differs: .* letter_text, .* letter: prepare them"):
        load_mixture({str(prepared): 1, str(other): 1}, "train", seed=1)


def test_a_weight_that_takes_nothing_is_refused(prepared):
    with pytest.raises(UserError, match="not a single row"):
        load_mixture({str(prepared): 1e-5}, "train", seed=1)


@pytest.mark.parametrize("mixture", ["A", "[1]", "{}", '{"A": 0}', '{"A": "much"}', '{"A": -1}', "3"])
def test_a_value_that_is_not_a_mixture_is_refused(mixture):
    with pytest.raises(UserError, match="write data sets and positive weights"):
        Settings(Path("r.yaml"), {"dataset_name": "A", "dataset_mixture": mixture}, {}).dataset_weights()


def test_a_recipe_names_the_mixture_as_yaml_and_without_one_the_data_set_is_taken_once(tmp_path):
    recipe = "output_dir: out\nuse_cpu: true\ndataset_name: A\ndataset_mixture: {A: 1, B: 0.5}\n"
    (tmp_path / "r.yaml").write_text(recipe)
    assert resolve([str(tmp_path / "r.yaml")]).dataset_weights() == {"A": 1.0, "B": 0.5}
    assert resolve(["recipes/pmcvqa.yaml", "--dataset_name", "A"]).dataset_weights() == {"A": 1.0}


def test_the_fingerprint_of_the_data_knows_every_row_and_their_order_and_not_the_place(prepared, prepare):
    from sft.common.data import data_fingerprint

    rows, copy = load_split(str(prepared), "train"), load_split(str(prepare()), "train")
    others = [rows.select(range(1, len(rows))), rows.select([1, 0, *range(2, len(rows))]), rows.select(range(10, 20))]
    first, again, *different = [data_fingerprint(some, ["prompt", "completion"]) for some in (rows, copy, *others)]
    assert first == again
    assert len({first, *different}) == 4


def test_a_folder_that_is_not_here_is_not_replaced_by_one_of_its_name_from_the_cache(prepared, tmp_path, monkeypatch):
    load_split(str(prepared), "train")  # now in the cache, as PMC-VQA-Processed
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data set PMC-VQA-Processed does not exist: prepare one with"):
        load_split("PMC-VQA-Processed", "train")


def test_dev_rows_with_another_answer_format_are_refused(refused, prepared, prepare, toy_options, tmp_path):
    letters = prepare("--answer_format", "letter")
    data = ("--dataset_name", letters, "--dataset_mixture", json.dumps({str(prepared): 1}))
    line = refused("sft/run.py", *toy_options("pmcvqa"), *data, "--output_dir", tmp_path / "out")
    assert "has answers in the format letter, the training rows have letter_text" in line


def test_a_foreign_file_under_one_of_our_names_is_refused_in_words(refused, tmp_path):
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text("{}")
    line = refused("sft/infer.py", "--model_path", tmp_path, "--question", "Why?")
    assert "adapter_config.json has no base_model_name_or_path" in line


def test_prompts_of_another_version_are_refused_in_data_and_models(refused, prepared, tiny_deepseek, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(prepared, data)
    (file,) = (data / "test").glob("*.parquet")
    table = pq.read_table(file)
    prompts = table["prompt"].to_pylist()
    for (turn,) in prompts:
        turn["content"] = f"Question: {turn['content']}"
    place, field = table.column_names.index("prompt"), table.schema.field("prompt")
    pq.write_table(table.set_column(place, field, pa.array(prompts, field.type)), file)
    words = ("sft/evaluate.py", "--output_dir", tmp_path / "eval", "--model_path")
    assert "has other prompts than" in refused(*words, tiny_deepseek, "--dataset_path", data)
    shutil.copytree(tiny_deepseek, model)
    (model / "prompt_format.json").write_text('{"answer_format": "letter_text", "prompt_version": 0}')
    assert "prompts of version 0" in refused(*words, model, "--dataset_path", prepared)
