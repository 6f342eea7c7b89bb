"""Tiny random models of real architectures, with their families' templates: trained, scored, stopped, loaded again."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer

from sft.common.chat_template import stop_tokens, token_ids
from sft.common.command import UserError
from sft.common.models import load_model, load_tokenizer
from sft.common.prompts import prompt_messages
from sft.inference.generation import Sampling, generate_ids
from sft.inference.likelihood import batch_log_likelihoods, option_tokens
from sft.training.base_model import for_base_model
from sft.training.config import resolve
from sft.training.launch import Launch
from tests.families import ARCHITECTURES, FAMILIES, OWN, text_of, with_family, write_tiny

# As Mistral's instruction-tuned models write it, without tools.
MISTRAL = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- else %}{{- ' ' + m.content + eos_token }}{%- endif %}{%- endfor %}"
)


class Case(NamedTuple):
    """An architecture, what its configuration needs beside the sizes, and a family of the table."""

    architecture: str
    family: str
    sizes: dict


CASES = [
    Case(architecture, family, sizes)
    for architecture, (families, sizes) in ARCHITECTURES.items()
    for family in families
]
CASES.append(Case("Mistral", "mistral", {"sliding_window": 32}))


def values_of(family: str) -> dict:
    """The values of the template with which the family answers directly."""
    return {} if family not in FAMILIES or FAMILIES[family].direct else {"enable_thinking": False}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.architecture}-{case.family}")
def trained_case(request, tmp_path_factory, succeeds, few_dev, short_tokenizer):
    """(case, folder of the base model, folder of the run, what it printed)."""
    case, folder = request.param, tmp_path_factory.mktemp("family")
    stops = FAMILIES[case.family].stops if case.family in FAMILIES else ("</s>",)
    template = text_of(case.family) if case.family in FAMILIES else MISTRAL
    tokenizer = with_family(short_tokenizer, template, stops)
    write_tiny(folder / "base", case.architecture, tokenizer, stops, **case.sizes)
    done = succeeds(
        *("sft/run.py", "recipes/quickstart.yaml", "--model_name_or_path", folder / "base", "--chat_template_path="),
        *("--dataset_name", few_dev, "--output_dir", folder / "run", "--lora_target_modules", "all-linear"),
        *("--max_steps", "3", "--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "steps"),
        *(
            "--save_steps",
            "3",
            "--mcq_eval_samples",
            "8",
            "--max_length",
            "1024",
            "--bf16",
            "no",
            "--dtype",
            "float32",
            "--figures",
            "no",
        ),
        *(("--chat_template_kwargs", json.dumps(values)) if (values := values_of(case.family)) else ()),
    )
    return case, folder / "base", folder / "run", done.stdout


def opened_plainly(folder: Path) -> torch.nn.Module:
    """The model in a folder by the class that its configuration names, as transformers alone opens it."""
    (name,) = AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def always(model, token: int) -> None:
    """Let the model write `token` at every step."""
    logits = torch.full((model.get_output_embeddings().weight.shape[0],), -10.0)
    logits[token] = 10
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: logits.expand_as(output))


def test_it_trains_and_its_answers_are_scored(trained_case):
    case, _, run, printed = trained_case
    used = FAMILIES[case.family].template if case.family in FAMILIES else OWN
    assert f"Chat template: {used}" in printed
    manifest = json.loads((run / "final_model/run_manifest.json").read_text())
    assert manifest["chat_template"].startswith(used)
    assert manifest["chat_template"].endswith(", with enable_thinking false") == bool(values_of(case.family))
    losses = [row["loss"] for row in json.loads((run / "history.json").read_text()) if "loss" in row]
    assert all(0 < loss < 20 for loss in losses)
    assert 0 <= json.loads((run / "eval_results.json").read_text())["best"]["eval_mcq_accuracy"] <= 1


def test_the_final_model_loads_with_transformers_and_peft_alone_and_stops_where_it_learnt_to(trained_case):
    _, base, run, _ = trained_case
    final = str(run / "final_model")
    model, tokenizer = load_model(final, torch.float32, device="cpu")
    plain = PeftModel.from_pretrained(opened_plainly(base), final).eval()
    messages = prompt_messages("Which stain shows iron?", ["Congo red", "Prussian blue"])
    (prompt,) = token_ids(tokenizer, [messages], add_generation_prompt=True)
    # The plain tokenizer asks as ours does, without any option.
    options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    asked = AutoTokenizer.from_pretrained(final).apply_chat_template(messages, **options)
    assert asked["input_ids"][0].tolist() == prompt
    with torch.inference_mode():
        assert torch.equal(plain(**asked).logits, model(**asked).logits)
    # What it stops at is what the tokenizer and the base model's generation settings say.
    stops = stop_tokens(tokenizer)
    assert stops == stop_tokens(load_tokenizer(str(base)))
    for stop in stops:
        always(plain, stop)
        assert plain.generate(**asked, max_new_tokens=4)[0, len(prompt) :].tolist() == [stop]
        always(model, stop)
        assert generate_ids(model, tokenizer, [prompt], Sampling(max_new_tokens=4, temperature=0)) == [[stop]]


def test_a_merged_model_stops_at_the_same_tokens(trained_case, succeeds, tmp_path):
    _, _, run, _ = trained_case
    merged: Path = tmp_path / "merged"
    succeeds("sft/merge.py", "--model_path", run / "final_model", "--output_dir", merged)
    model = opened_plainly(merged)
    ends = model.generation_config.eos_token_id
    assert set(ends if isinstance(ends, list) else [ends]) == stop_tokens(load_tokenizer(str(merged)))
    assert stop_tokens(load_tokenizer(str(merged))) == stop_tokens(load_tokenizer(str(run / "final_model")))


def test_the_scores_of_options_are_those_of_each_row_alone(trained_case):
    """Whatever the model remembers of a row: keys and values, those of a window, or a state."""
    _, _, run, _ = trained_case
    model, tokenizer = load_model(str(run / "final_model"), torch.float32, device="cpu")
    texts = ["red and green", "blue", "the colour of the sky at night"]
    asked = ["Which?", "Which colour does the sky have at night, and which one does the grass have?"]
    questions = [{"question": question, "choices": texts, "answer_format": "text"} for question in asked]
    tokens = option_tokens(tokenizer, questions)
    for question, scores in zip(tokens, batch_log_likelihoods(model, tokenizer, tokens), strict=True):
        place = len(question["shared"]) - 1
        for option, score in zip(question["options"], scores, strict=True):
            logits = model(input_ids=torch.tensor([question["shared"] + option]), use_cache=False).logits[0]
            each = logits[place : place + len(option)].log_softmax(-1)
            assert score == pytest.approx(each[torch.arange(len(option)), option].sum().item(), abs=1e-4)


def test_the_rows_of_a_pack_do_not_read_one_another_or_packing_is_refused(trained_case):
    _, base, _, _ = trained_case
    model = opened_plainly(base)
    row, other, last = torch.arange(50, 110).view(3, 1, 20)
    options = {"position_ids": torch.arange(20).repeat(2)[None], "use_cache": False}
    with torch.inference_mode():
        first, second = (model(torch.cat([before, last], 1), **options).logits[:, 20:] for before in (row, other))
    settings = resolve(["recipes/quickstart.yaml", "--model_name_or_path", str(base), "--packing", "yes"])
    settings = settings.with_values({"lora_target_modules": "all-linear", "figures": False}, "test")
    if torch.allclose(first, second, rtol=0, atol=1e-5):
        for_base_model(settings, Launch())
        return
    with pytest.raises(UserError, match=r"the rows of a pack would read one another .* pass --packing no"):
        for_base_model(settings, Launch())


@pytest.mark.parametrize("architecture", ["Bloom", "Mpt", "OPT"])
def test_packing_is_refused_for_models_that_are_not_told_where_a_row_begins(architecture, tmp_path):
    getattr(transformers, f"{architecture}Config")().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # only the configuration is read
    settings = resolve(["recipes/quickstart.yaml", "--model_name_or_path", str(tmp_path), "--packing", "yes"])
    with pytest.raises(UserError, match="the rows of a pack would read one another"):
        for_base_model(settings.with_values({"lora_target_modules": "all-linear"}, "test"), Launch())


@pytest.mark.parametrize("packing", ["yes", "no"])
def test_a_model_that_does_not_write_text_is_refused_in_words_or_left_to_the_run(packing, tmp_path):
    transformers.T5Config(d_model=32, num_layers=1, num_heads=2, d_ff=32).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # only the configuration is read
    settings = resolve(["recipes/quickstart.yaml", "--model_name_or_path", str(tmp_path), "--packing", packing])
    if packing == "no":
        for_base_model(settings, Launch())
        return
    with pytest.raises(UserError, match="cannot be trained: a model of type t5 does not write text"):
        for_base_model(settings, Launch())


def test_a_model_that_writes_blocks_of_text_is_refused(tmp_path):
    transformers.DiffusionGemmaConfig().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()  # only the configuration is read
    settings = resolve(["recipes/quickstart.yaml", "--model_name_or_path", str(tmp_path), "--packing", "yes"])
    with pytest.raises(UserError, match="a model of type diffusion_gemma does not write text from left to right"):
        for_base_model(settings, Launch())


def test_every_family_is_trained_or_refused():
    trained = {family for families, _ in ARCHITECTURES.values() for family in families}
    assert FAMILIES.keys() - trained == {"diffusion_gemma"}


def test_the_template_that_stands_in_for_a_models_own_is_said_everywhere(succeeds, few_dev, short_tokenizer, tmp_path):
    """As for a distill of DeepSeek-R1, whose own template deletes the think block."""
    name, ours = "deepseek_r1_distill", "recipes/templates/deepseek_r1.jinja"
    tokenizer = with_family(short_tokenizer, text_of(name), FAMILIES[name].stops)
    write_tiny(tmp_path / "base", "Llama", tokenizer, FAMILIES[name].stops)
    model, said = ("--model_path", tmp_path / "base"), f"Chat template: {ours}, because the model's own is refused ("
    run = (
        *("sft/run.py", "recipes/quickstart.yaml", "--model_name_or_path", tmp_path / "base", "--chat_template_path="),
        *("--dataset_name", few_dev, "--output_dir", tmp_path / "run", "--max_steps", "1", "--mcq_eval_samples", "4"),
    )
    assert said in succeeds(*run).stdout
    assert json.loads((tmp_path / "run/run_manifest.json").read_text())["chat_template"].startswith(ours)
    final = AutoTokenizer.from_pretrained(tmp_path / "run/final_model")
    assert final.chat_template == Path(ours).read_text(encoding="utf-8")
    assert said in succeeds("sft/infer.py", *model, "--question", "Which?", "--max_new_tokens", "2").stderr
    sample = ("--dataset_path", few_dev, "--num_samples", "4", "--output_dir", tmp_path, "--name", "eval")
    assert said in succeeds("sft/evaluate.py", *model, *sample).stdout
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["fingerprint_of"]["chat_template"].startswith(ours)
    assert results["fingerprint"]["chat_template"] == hashlib.sha256(Path(ours).read_bytes()).hexdigest()
