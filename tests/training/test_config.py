"""Recipes and overrides: what is written is what runs, and what cannot run is refused in words."""

import pytest
import yaml
from trl import ModelConfig, ScriptArguments, SFTConfig

from sft.common.command import UserError
from sft.training.config import resolve

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
    settings = resolve([path])
    training, model = settings.build(SFTConfig), settings.build(ModelConfig)
    assert training.learning_rate == 2e-5
    assert training.bf16 is False
    assert training.packing is True
    assert training.eval_strategy == "no"
    assert training.max_length is None
    assert training.max_steps == -1
    assert training.model_init_kwargs == {"use_cache": False}
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert settings.build(ScriptArguments).dataset_name == "d"


def test_numbers_are_read_as_they_are_written(recipe):
    """YAML takes 2026_11_27 for 20261127, 12:30 for 750 and 042 for 34."""
    settings = resolve([recipe("project: 2026_11_27\nmodel_revision: 0123456\nrun_name: 12:30\nseed: 042\n")])
    named = (settings.project, settings.model_revision, settings.run_name, settings.seed)
    assert named == ("2026_11_27", "0123456", "12:30", 42)


@pytest.mark.parametrize(
    "text", ["model_init_kwargs: {a: 2020-01-01}", "model_init_kwargs: &a {x: *a}", "a: " + "[" * 3000]
)
def test_what_no_setting_can_be_is_one_line(recipe, text):
    with pytest.raises(UserError, match=r"is not valid YAML"):
        resolve([recipe(text + "\n")])


def test_command_line_wins_over_recipe(recipe):
    path = recipe(learning_rate=1.0, lora_r=4, packing=True)
    settings = resolve([path, "--learning_rate", "2e-4", "--lora_r=8", "--packing", "no"])
    training, model = settings.build(SFTConfig), settings.build(ModelConfig)
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
        resolve([recipe(**{key: 1})])
    with pytest.raises(UserError, match=f"command line: unknown key {key}: .*{words}"):
        resolve([recipe(), f"--{key}", "1"])


@pytest.mark.parametrize(
    ("word", "words"), [("--learning", "unknown key learning"), ("learning_rate", "belongs to no option")]
)
def test_shortened_options_and_stray_words_are_refused_not_guessed(recipe, word, words):
    with pytest.raises(UserError, match=words):
        resolve([recipe(), word, "1e-4"])


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
        resolve([recipe(**{key: value})])
    assert "recipe.yaml" in str(refused.value)
    with pytest.raises(UserError, match=words):
        resolve([recipe(), f"--{key}", value])


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
        resolve(argv)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lora_r: 1\nseed: 2\nlora_r: 3\n", "lora_r stands twice, in lines 6 and 8"),
        ("model_init_kwargs: {a: 1,\n  b: 2, a: 3}\n", "a stands twice, in lines 6 and 7"),
        ("seed: 2\n'seed': 3\n", "seed stands twice, in lines 6 and 7"),
        ("run_name: 2026-13-45\n", "is not valid YAML"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(recipe, text, words):
    with pytest.raises(UserError, match=f"recipe.yaml:? .*{words}"):
        resolve([recipe(text)])


def test_a_byte_order_mark_before_a_recipe_does_no_harm(recipe):
    path = recipe(learning_rate=1e-4)
    with open(path, "r+b") as file:
        text = file.read()
        file.seek(0)
        file.write(b"\xef\xbb\xbf" + text)
    assert resolve([path]).learning_rate == 1e-4


def test_every_value_is_printed_with_its_source_as_a_recipe_that_resolves_alike(recipe, tmp_path):
    settings = resolve([recipe(learning_rate=1e-4, packing=True), "--learning_rate", "2e-5"])
    text = settings.describe()
    lines = {line.split(":")[0]: line.rsplit("# ", 1)[1] for line in text.splitlines()}
    assert lines["learning_rate"] == "command line"
    assert lines["packing"] == str(settings.recipe)
    assert lines["weight_decay"] == "default"
    printed = tmp_path / "printed.yaml"
    printed.write_text(text, encoding="utf-8")
    again = resolve([str(printed)])
    assert again.values == settings.values
    assert again.learning_rate == 2e-5


def test_global_batch_size_decides_accumulation_on_any_number_of_processes(recipe):
    settings = resolve([recipe(global_batch_size=8, per_device_train_batch_size=2)])
    assert [settings.for_world_size(n).gradient_accumulation_steps for n in (1, 2, 4)] == [4, 2, 1]
    for processes in (3, 8):
        with pytest.raises(UserError, match=f"cannot be divided among {processes}"):
            settings.for_world_size(processes)


def test_an_accumulation_that_contradicts_the_global_batch_is_refused(recipe):
    path = recipe(global_batch_size=8, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    with pytest.raises(UserError, match=r"3 x 2 is not global_batch_size 8.*set global_batch_size to 6"):
        resolve([path]).for_world_size(1)


@pytest.mark.parametrize(("keys", "precision"), [({}, "bf16"), ({"fp16": True}, "fp16"), ({"bf16": False}, "no")])
def test_precision_is_bf16_unless_the_recipe_says_otherwise(recipe, keys, precision):
    assert resolve([recipe(**keys)]).precision == precision
