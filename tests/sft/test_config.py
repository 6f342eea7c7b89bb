"""Recipes and overrides: what is written is what runs, and what cannot run is refused in words."""

from pathlib import Path

import pytest
import yaml

from data_prep.command import UserError
from sft.config import check, parse

BASE = {
    "model_name_or_path": "m",
    "dataset_name": "d",
    "output_dir": "o",
    "use_cpu": True,
    "dataset_test_split": "dev",
}


@pytest.fixture
def recipe(tmp_path):
    """Write BASE and the given keys as a recipe; returns its path."""

    def write(text: str = "", **keys) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**BASE, **keys}) + text, encoding="utf-8")
        return str(file)

    return write


def test_values_arrive_with_the_type_of_their_field(recipe):
    path = recipe(
        "learning_rate: 2e-5\nbf16: NO\npacking: on\neval_strategy: no\nmax_length: null\n"
        "lora_target_modules: [q_proj, v_proj]\nmodel_init_kwargs: {use_cache: false}\nmax_steps: -1\n"
    )
    script, training, model, _ = parse([path])
    assert training.learning_rate == 2e-5
    assert training.bf16 is False
    assert training.packing is True
    assert training.eval_strategy == "no"
    assert training.max_length is None
    assert training.max_steps == -1
    assert training.model_init_kwargs == {"use_cache": False}
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert script.dataset_name == "d"


def test_command_line_wins_over_recipe(recipe):
    path = recipe(learning_rate=1.0, lora_r=4, packing=True)
    _, training, model, _ = parse([path, "--learning_rate", "2e-4", "--lora_r=8", "--packing", "no"])
    assert (training.learning_rate, model.lora_r, training.packing) == (2e-4, 8, False)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("max_seq_length", "use max_length"),
        ("warmup_ratio", "use warmup_steps"),
        ("evaluation_strategy", "use eval_strategy"),
        ("torch_dtype", "use dtype"),
        ("gradient_checkpointing", "use activation_checkpointing"),
        ("hub_token", "hf auth login"),
        ("learning_rte", "did you mean learning_rate"),
        ("lora_rank", "use lora_r"),
        ("zzzzzz", "trl sft --help"),
    ],
)
def test_unknown_keys_name_the_right_one(recipe, key, words):
    with pytest.raises(UserError, match=f"recipe.yaml: unknown key {key}: .*{words}"):
        parse([recipe(**{key: 1})])
    with pytest.raises(UserError, match=f"command line: unknown key {key}: .*{words}"):
        parse([recipe(), f"--{key}", "1"])


def test_shortened_options_are_unknown_not_guessed(recipe):
    with pytest.raises(UserError, match="unknown key learning"):
        parse([recipe(), "--learning", "1e-4"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("packing_strategy", "nonsense", "invalid choice"),
        ("learning_rate", "fast", "invalid float"),
        ("bf16", "perhaps", "Truthy value expected"),
        ("eval_strategy", "sometimes", "invalid choice|valid"),
    ],
)
def test_values_that_a_field_refuses_name_key_and_place(recipe, key, value, words):
    with pytest.raises(UserError, match=words) as refused:
        parse([recipe(**{key: value})])
    assert "recipe.yaml" in str(refused.value)
    with pytest.raises(UserError, match=words):
        parse([recipe(), f"--{key}", value])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "name a recipe first"),
        (["--learning_rate", "1"], "name a recipe first"),
        (["nowhere.yaml"], "No such file"),
        (["LICENSE"], "not valid YAML|key: value"),
        (["recipes"], "directory"),
    ],
)
def test_no_recipe_no_run(argv, words):
    with pytest.raises(UserError, match=words):
        parse(argv)


def test_stray_words_are_refused(recipe):
    with pytest.raises(UserError, match="belongs to no option"):
        parse([recipe(), "learning_rate", "1e-4"])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model_name_or_path": None}, "model_name_or_path is not set"),
        ({"dataset_name": None}, "dataset_name is not set"),
        ({"dataset_test_split": "test", "eval_strategy": "epoch"}, "use dev"),
        ({"dataset_test_split": "test_clean", "eval_strategy": "epoch"}, "use dev"),
        ({"load_in_8bit": True}, "set use_peft"),
        ({"load_in_4bit": True}, "set use_peft"),
        ({"use_peft": True, "lora_target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"use_peft": True, "lora_target_modules": ["lm_head"]}, "lm_head"),
    ],
)
def test_settings_that_would_fail_late_are_refused_early(recipe, keys, words):
    with pytest.raises(UserError, match=words):
        check(*parse([recipe(**keys)])[:3])


def test_save_and_eval_steps_that_do_not_match_are_refused_early(recipe):
    keys = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    with pytest.raises(UserError, match="multiple"):
        parse([recipe(**keys, eval_steps=300, save_steps=500)])


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("recipes/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_parses_and_passes_its_checks(path):
    script, training, model, _ = parse([str(path), "--use_cpu", "yes"])
    check(script, training, model)
    assert training.report_to == []
    assert training.chat_template_path and (path.parents[1] / training.chat_template_path).is_file()
    assert script.dataset_test_split == "dev"
    assert training.save_total_limit
