"""A base model is evaluated in the form that it will be trained in, whatever its template does."""

import json

import pytest

from tests.families import FAMILIES, text_of, with_family, write_tiny

NO_THINKING = '{"enable_thinking": false}'


@pytest.fixture(scope="module")
def base(short_tokenizer, tmp_path_factory):
    """Make a tiny base model with a family's template."""

    def make(family, architecture, stops=None):
        folder, stops = tmp_path_factory.mktemp("base") / family, stops or FAMILIES[family].stops
        write_tiny(folder, architecture, with_family(short_tokenizer, text_of(family), stops), stops)
        return folder

    return make


@pytest.fixture
def words(prepared, tmp_path):
    """The command line of an evaluation of a model on four questions, in float32."""

    def of(model, *options, data=prepared):
        common = ("--dtype", "float32", "--num_samples", 4, "--max_new_tokens", 4, "--output_dir", tmp_path / "eval")
        return ("sft/evaluate.py", "--model_path", model, "--dataset_path", data, *common, *options)

    return of


def test_values_of_the_templates_variables_hold_for_training_data_evaluation_and_inference(
    base, words, here, refused, sample, tmp_path, monkeypatch
):
    import transformers

    model, values = base("qwen3", "Qwen3"), ("--chat_template_kwargs", NO_THINKING)
    form = "Chat template: the model's own, with enable_thinking false"
    folder = tmp_path / "P"
    tokens = ("--pretokenize", model, "--output_dir", folder, "--max_rejected", 0.1)
    done = here("data_prep/prepare.py", "--dataset_path", sample, *tokens, *values)
    assert done.returncode == 0, done.stderr
    # The recipe sets it too, and takes these tokens.
    data = ("--model_name_or_path", model, "--dataset_name", folder)
    done = here("sft/preflight.py", "recipes/qwen3_8b.yaml", "--gpu", "A100-40GB", *data)
    assert done.returncode == 0, done.stderr
    assert form in done.stdout
    assert "tokens for another" in refused(
        *("sft/preflight.py", "recipes/qwen3_8b.yaml", "--gpu", "A100-40GB", *data, "--chat_template_kwargs", "{}")
    )
    loaded, auto = [], transformers.AutoTokenizer
    load = auto.from_pretrained
    monkeypatch.setattr(auto, "from_pretrained", lambda *a, **o: loaded.append(a) or load(*a, **o))
    done = here(*words(model, *values, "--method", "likelihood", "generation", "--thinking_budgets", 2))
    assert done.returncode == 0, done.stderr
    assert form in done.stdout
    assert len(loaded) == 1  # a tokenizer takes half a second to load
    assert "other chat_template" in refused(*words(model))
    assert "has no variable thinking" in refused(*words(model, "--chat_template_kwargs", '{"thinking": 1}'))
    done = here("sft/infer.py", "--model_path", model, "--question", "Why?", "--max_new_tokens", 4, *values, "--json")
    assert form in done.stderr
    assert json.loads(done.stdout)["reasoning"] == ""
    options = ("--evaluate", "--dataset_path", folder, "--num_samples", 2, "--max_new_tokens", 4)
    done = here("sft/infer.py", "--model_path", model, *options, "--output_dir", tmp_path / "eval", *values)
    assert form in done.stdout


def test_a_base_model_that_cannot_end_its_turn_is_scored_by_letters_and_does_not_generate(
    base, words, here, refused, prepare, tmp_path
):
    """As Qwen2.5-7B, which has the template of the chat model and stops at the end of a text."""
    model = base("qwen2_5", "Qwen2", stops=("<|endoftext|>",))
    done = here(*words(model, "--method", "likelihood"))
    assert done.returncode == 0, done.stderr
    generation = ("--method", "generation", "--name", "written")
    assert "'<|endoftext|>': generated answers would not end" in refused(*words(model, *generation))
    assert "would not end" in refused("sft/infer.py", "--model_path", model, "--question", "Why?")
    texts = prepare("--answer_format", "text")
    assert "Set eos_token: '<|im_end|>' in the recipe" in refused(*words(model, "--name", "text", data=texts))
    # Where the model's settings name the end of the turn, the scores are the same.
    file, added = (json.loads((model / name).read_text()) for name in ("generation_config.json", "tokenizer.json"))
    end = next(token["id"] for token in added["added_tokens"] if token["content"] == "<|im_end|>")
    (model / "generation_config.json").write_text(json.dumps(file | {"eos_token_id": end}))
    for options in ("--method", "likelihood", "--name", "knows"), generation:
        done = here(*words(model, *options))
        assert done.returncode == 0, done.stderr
    evaluations = (tmp_path / "eval" / name / "results.json" for name in ("qwen2_5", "knows"))
    unknown, known = (json.loads(file.read_text())["scores"] for file in evaluations)
    assert unknown == known
