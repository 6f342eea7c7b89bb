"""What a recipe asks of its base model is looked up before the model loads: names, stored weights, architecture."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

PREFLIGHT = ("sft/preflight.py", "recipes/pmcvqa.yaml", "--gpu", "A100-80GB")


@pytest.fixture
def data(few_dev) -> tuple:
    """Options that name the sample, and tokens of which the model's own vocabulary has no part."""
    return ("--dataset_name", few_dev, "--chat_template_path", "recipes/templates/deepseek_r1.jinja")


@pytest.fixture(scope="module")
def model(tmp_path_factory, short_tokenizer):
    """Make a folder with a model of a family: projections by other names, or experts."""
    from transformers import AutoConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        extra = experts if "moe" in family else {}
        config = AutoConfig.for_model(family, vocab_size=len(short_tokenizer), **sizes, **extra)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        short_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def phi(model) -> Path:
    """A model whose projections are fused, as those of Phi-3 and Phi-4."""
    return model("phi3")


@pytest.fixture(scope="module")
def mixture(model) -> Path:
    """A mixture of experts, whose projections are parameters without a module of their own."""
    return model("qwen3_moe")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tiny_deepseek, short_tokenizer) -> Path:
    """The tiny model, its weights stored in 4-bit."""
    folder = tmp_path_factory.mktemp("stored")
    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    AutoModelForCausalLM.from_pretrained(tiny_deepseek, quantization_config=quantised).save_pretrained(folder)
    short_tokenizer.save_pretrained(folder)
    return folder


PHI_HAS = "it has o_proj, qkv_proj, gate_up_proj, down_proj"


@pytest.mark.parametrize("script", ["sft/preflight.py", "sft/run.py"])
def test_names_of_which_the_model_has_only_some_are_refused_with_what_it_has(refused, phi, data, script):
    where = ("--gpu", "A100-80GB") if "preflight" in script else ("--use_cpu", "yes")
    line = refused(script, "recipes/pmcvqa.yaml", *where, "--model_name_or_path", phi, *data)
    assert f"Phi3ForCausalLM has no q_proj, k_proj, v_proj, gate_proj, up_proj: {PHI_HAS}" in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--lora_target_modules qkv_proj o_prj", f"lora_target_modules: Phi3ForCausalLM has no o_prj: {PHI_HAS}"),
        ("--lora_target_modules q_proj", f"has no q_proj: {PHI_HAS}"),
        (r"--lora_target_modules .*\.q_proj", "not found in the base model"),
        ("--lora_target_modules .*(", "missing ), unterminated subpattern"),
        ("--lora_target_modules .*_proj|lm_head", "does not train an adapter on lm_head"),
        (
            "--lora_target_modules qkv_proj --lora_modules_to_save embed",
            "lora_modules_to_save: Phi3ForCausalLM has no",
        ),
        ("--lora_target_modules qkv_proj --lora_target_parameters experts.up", "it has none of that kind"),
        ("--router_aux_loss_coef 0.1", "is for mixtures of experts"),
    ],
)
def test_every_name_of_an_adapter_is_looked_up(refused, phi, data, options, words):
    assert words in refused(*PREFLIGHT, "--model_name_or_path", phi, *data, *options.split())


@pytest.mark.parametrize(
    "options",
    [
        "qkv_proj",
        "qkv_proj o_proj gate_up_proj",
        "all-linear",
        r".*\.(qkv|o)_proj",
        "o_proj --lora_modules_to_save lm_head",
    ],
)
def test_names_that_the_model_has_pass(succeeds, phi, data, options):
    words = ("--lora_target_modules", *options.split(), "--model_name_or_path", phi)
    assert "Trained: " in succeeds(*PREFLIGHT, *words, *data).stdout


def test_adapters_on_experts_with_dropout_are_refused_and_pass_without(refused, succeeds, mixture, data):
    words = (*PREFLIGHT, "--load_in_8bit", "no", "--model_name_or_path", mixture, *data)
    assert "does not work with lora_dropout != 0" in refused(*words)
    assert "Trained: " in succeeds(*words, "--lora_dropout", "0").stdout
    line = refused(*words, "--lora_dropout", "0", "--lora_target_parameters", "experts.up")
    assert "it has experts.gate_up_proj, experts.down_proj" in line


def test_an_adapter_on_embeddings_that_are_the_output_layer_too_is_refused(refused, embedded_model, data):
    """Merged into them it would change both (PEFT only warns)."""
    words = ("--model_name_or_path", embedded_model, "--lora_target_modules", "q_proj", "embed_tokens")
    line = refused("sft/preflight.py", "recipes/quickstart.yaml", *words, "--dataset_name", data, "--use_cpu", "yes")
    assert "lora_target_modules: the input embeddings are this model's output layer too" in line


def test_one_name_alone_is_a_name_and_no_regular_expression(succeeds, toy_options, tmp_path):
    done = succeeds(
        *("sft/run.py", *toy_options("pmcvqa"), "--output_dir", tmp_path / "out", "--dry_run", "yes"),
        *("--lora_target_modules", "q_proj"),
    )
    assert "Dry run: one step" in done.stdout


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("pmcvqa", "", "is stored quantised (4-bit), and the recipe asks for 8-bit: pass --load_in_8bit no"),
        ("pmcvqa_zero3", "--config_file accelerate_configs/zero3.yaml", "4-bit weights cannot be divided among GPUs"),
        ("pmcvqa_fsdp2", "--config_file accelerate_configs/fsdp2.yaml", "of a model that is not stored quantised"),
        (
            "pmcvqa",
            "--load_in_8bit no --use_peft no --dtype float32",
            "set use_peft: true, or use a model that is not",
        ),
    ],
)
def test_a_quantisation_in_which_the_base_is_stored_counts_as_the_recipes(
    refused, stored, data, recipe, options, words
):
    line = refused(
        *("sft/preflight.py", f"recipes/{recipe}.yaml", "--gpu", "A100-80GB", "--model_name_or_path", stored),
        *(*data, *options.split()),
    )
    assert words in line


def test_a_base_stored_in_4_bit_is_planned_and_trained_so(succeeds, stored, toy_options, tmp_path):
    """Adapters too are in float32, where the precision is not bf16."""
    done = succeeds(
        *("sft/run.py", *toy_options("pmcvqa"), "--output_dir", tmp_path / "out", "--load_in_8bit", "no"),
        *("--model_name_or_path", stored, "--max_steps", "1", "--bf16", "no", "--dtype", "float32"),
        *("--save_steps", "1", "--eval_steps", "1"),
    )
    assert "frozen weights 4-bit, as the base model stores them" in done.stdout
    assert "Trained parameters: float32" in done.stdout
    assert "uint8" in done.stdout
    manifest = json.loads((tmp_path / "out/final_model/run_manifest.json").read_text())
    assert manifest["base_model"]["quantised"] == "4-bit"


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"quant_method": "mxfp4"}, "(mxfp4 4-bit), and transformers trains no adapters on such weights"),
        ({"quant_method": "weird"}, "(weird 8-bit): "),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "asks for 8-bit: pass --load_in_8bit no"),
    ],
    ids=lambda stored: stored["quant_method"] if isinstance(stored, dict) else "",
)
def test_other_kinds_of_stored_weights_are_known_or_refused(refused, tiny_deepseek, data, tmp_path, stored, words):
    folder = tmp_path / "model"
    shutil.copytree(tiny_deepseek, folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": stored}
    (folder / "config.json").write_text(json.dumps(config))
    options = () if stored["quant_method"] == "fp8" else ("--load_in_8bit", "no")
    assert words in refused(*PREFLIGHT, "--model_name_or_path", folder, *data, *options)


def test_a_vocabulary_in_tekken_json_alone_is_refused_in_words(refused, tiny_deepseek, data, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_deepseek, folder, ignore=shutil.ignore_patterns("token*", "chat_template*"))
    (folder / "tekken.json").write_text('{"config": {}, "vocab": []}')
    assert "use a copy of the model with tokenizer.json" in refused(*PREFLIGHT, "--model_name_or_path", folder, *data)


def test_a_recipe_sets_no_variable_that_another_version_of_its_model_lacks(
    refused, succeeds, short_tokenizer, few_dev, tmp_path
):
    """Qwen3-8B can think or not; Qwen3's Instruct-2507 never does, and its template has no variable for it."""
    from tests.families import FAMILIES, text_of, with_family, write_tiny

    model, stops = tmp_path / "instruct", FAMILIES["qwen3_instruct_2507"].stops
    write_tiny(model, "Qwen3", with_family(short_tokenizer, text_of("qwen3_instruct_2507"), stops), stops)
    words = ("sft/preflight.py", "recipes/qwen3_8b.yaml", "--gpu", "A100-80GB", "--model_name_or_path", model)
    words += ("--dataset_name", few_dev)
    advised = "--chat_template_kwargs '{}'"
    assert f"has no variable enable_thinking: check its name, or leave it out ({advised})" in refused(*words)
    assert "Chat template: the model's own\n" in succeeds(*words, *shlex.split(advised)).stdout
