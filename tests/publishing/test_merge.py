"""Merging: the merged model answers as the adapter does, made in the memory of one copy; rounding is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MERGE = "sft/merge.py"
# Runs sft/merge.py and looks every few milliseconds at the memory of its own that the process holds, in KiB.
MEASURE = """
import re, threading, time
import peft, torch, transformers
import sft.merge

def held():
    return int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1])

def watch():
    global peak
    while True:
        peak = max(peak, held())
        time.sleep(0.005)

before = peak = held()
threading.Thread(target=watch, daemon=True).start()
sft.merge.main()
print("PEAK", peak - before)
"""


@pytest.fixture(scope="module")
def adapter(tiny_deepseek, tmp_path_factory):
    """A LoRA adapter for the tiny model with random weights: it changes every answer."""
    return random_adapter(tiny_deepseek, tmp_path_factory.mktemp("adapter"), ["q_proj", "v_proj", "down_proj"])


def random_adapter(base, folder, targets="all-linear"):
    """Write a strong random adapter for `base` into `folder`; returns it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    get_peft_model(model, config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def log_likelihoods(model_path, questions):
    """Of every option, in float32, by our scorer."""
    import torch

    from sft.common.models import load_model
    from sft.inference.likelihood import option_log_likelihoods

    model, tokenizer = load_model(str(model_path), torch.float32)
    return dict(option_log_likelihoods(model, tokenizer, questions, 4))


def test_a_merged_model_scores_options_as_the_adapter_does_and_keeps_its_template(here, adapter, tmp_path):
    out = tmp_path / "merged"
    done = here(MERGE, "--model_path", adapter, "--output_dir", out)
    assert done.returncode == 0, done.stderr
    assert "Logits on 5 prompts: merged and adapter differ by" in done.stdout
    written = {file.name for file in out.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= written
    assert (out / "chat_template.jinja").read_text() == (adapter / "chat_template.jinja").read_text()
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert '"PreTrainedTokenizerFast"' in (out / "tokenizer_config.json").read_text()
    from sft.inference.assistant import DEMO

    questions = [{"question": q, "choices": c, "answer_format": "text"} for q, c in DEMO]
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    adapted, merged, plain = (log_likelihoods(path, questions) for path in (adapter, out, base))
    for number in range(len(questions)):
        for a, m, p in zip(adapted[number], merged[number], plain[number], strict=True):
            assert abs(m - a) < 0.1 * abs(p - a) + 0.05  # rounding to bfloat16 against what the adapter does


def test_a_merge_that_is_not_the_adapter_is_refused(adapter):
    import torch

    from sft.common.command import UserError
    from sft.publishing.merging import compare

    base = torch.zeros(3, 5)
    adapted = torch.arange(15.0).reshape(3, 5)
    compare(base, adapted, adapted + 0.01)
    compare(adapted, adapted, adapted)  # an adapter that does nothing
    for merged in (base, -adapted, adapted * float("nan")):
        with pytest.raises(UserError, match="would not answer as the adapter does, and is not kept"):
            compare(base, adapted, merged)


def test_weights_are_saved_in_shards(adapter, tmp_path, monkeypatch):
    from sft.publishing import merging

    monkeypatch.setattr(merging, "SHARD_SIZE", "1MB")
    base = merging.check_mergeable(str(adapter))
    merging.merge(str(adapter), base, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert {path.name for path in tmp_path.glob("*.safetensors")} == set(index["weight_map"].values())


def test_a_merged_model_stops_where_its_tokenizer_says(adapter, tiny_deepseek, tmp_path):
    """A recipe's eos_token is in the adapter's tokenizer alone; servers read the model's own files."""
    from transformers import AutoTokenizer, GenerationConfig

    from sft.publishing import merging

    model = shutil.copytree(adapter, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(model)
    own = tokenizer.eos_token_id
    tokenizer.eos_token = "</think>"  # noqa: S105
    tokenizer.save_pretrained(model)
    merging.merge(str(model), str(tiny_deepseek), tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == sorted({own, tokenizer.eos_token_id})
    assert json.loads((tmp_path / "merged/config.json").read_text())["eos_token_id"] == sorted(
        {own, tokenizer.eos_token_id}
    )


def test_a_quantised_base_is_refused_and_the_way_out_named(here, refused, adapter, tiny_deepseek, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = tmp_path / "quantised"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    AutoModelForCausalLM.from_pretrained(tiny_deepseek, quantization_config=config).save_pretrained(quantised)
    model = shutil.copytree(adapter, tmp_path / "adapter")
    described = json.loads((model / "adapter_config.json").read_text())
    (model / "adapter_config.json").write_text(json.dumps({**described, "base_model_name_or_path": str(quantised)}))
    out = tmp_path / "merged"
    line = refused(MERGE, "--model_path", model, "--output_dir", out)
    assert "is stored quantised (4-bit): merging would round" in line
    assert "--base_model" in line
    assert not out.exists()
    done = here(MERGE, "--model_path", model, "--output_dir", out, "--base_model", tiny_deepseek)
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").is_file()


def test_the_facts_of_a_run_travel_and_name_what_it_was_merged_onto(trained, tmp_path):
    from sft.publishing import merging

    base = merging.check_mergeable(str(trained))
    merging.merge(str(trained), base, tmp_path)
    for name in ("recipe.yaml", "history.json", "eval_results.json", "prompt_format.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()
    merged = json.loads((tmp_path / "run_manifest.json").read_text())["merged"]
    assert merged["onto"] == {"name": "tiny-deepseek", "revision": None}
    assert merged["prompts"] == 5


def test_the_template_of_final_and_merged_model_is_the_one_that_was_used(succeeds, toy_options, tmp_path):
    """One with a byte order mark, which would stand before every prompt, and with the date, which would change it."""
    plain = Path("recipes/templates/deepseek_r1.jinja").read_text(encoding="utf-8")
    template = tmp_path / "dated.jinja"
    template.write_text("\ufeff{{- strftime_now('%d %b %Y') }}" + plain, encoding="utf-8")
    short = ("--chat_template_path", template, "--max_steps", 1, "--eval_steps", 1, "--save_steps", 1)
    succeeds("sft/run.py", *toy_options("pmcvqa"), *short, "--load_in_8bit", "no", "--output_dir", tmp_path / "out")
    final, merged = tmp_path / "out/final_model", tmp_path / "merged"
    succeeds(MERGE, "--model_path", final, "--output_dir", merged)
    for folder in (final, merged):
        written = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        assert not written.startswith("\ufeff")
        assert "strftime_now" not in written
        assert "26 Jul 2024" in written


def test_what_cannot_be_merged_is_refused_in_one_line(refused, adapter, tiny_deepseek, tmp_path, monkeypatch):
    out = tmp_path / "merged"
    assert "is not an adapter" in refused(MERGE, "--model_path", tiny_deepseek, "--output_dir", out)
    assert "does not exist" in refused(MERGE, "--model_path", tmp_path / "none", "--output_dir", out)
    assert "cannot be loaded" in refused(MERGE, "--model_path", "nobody/nothing", "--output_dir", out)
    # What a run would have left is a folder, though it looks like a name on the Hub.
    line = refused(MERGE, "--model_path", "PMC-VQA-SFT-Nowhere/final_model", "--output_dir", out)
    assert "model folder PMC-VQA-SFT-Nowhere/final_model does not exist" in line
    words = (MERGE, "--model_path", adapter, "--output_dir")
    assert "pass --overwrite" in refused(*words, tmp_path)
    assert "does not exist" in refused(*words, out, "--base_model", tmp_path / "none")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
        assert "GiB are free: make room" in refused(*words, out)
    assert not out.exists()


def test_overwriting_takes_only_a_folder_that_merging_wrote_and_never_a_model_it_reads(
    refused, succeeds, trained, tiny_deepseek, tmp_path
):
    model, base, out = tmp_path / "adapter", tmp_path / "models/base", tmp_path / "merged"
    shutil.copytree(trained, model)
    shutil.copytree(tiny_deepseek, base)
    words = (MERGE, "--model_path", model, "--base_model", base, "--overwrite", "--output_dir")
    succeeds(*words, out)
    succeeds(*words, out)
    tokenizer_files = ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")
    for name in tokenizer_files:
        (out / name).write_text("{}")
    succeeds(*words, out)
    for folder in (model, model / "merged", base, base.parent, tmp_path):
        assert "is, contains or lies in the model folder" in refused(*words, folder)
    (out / "notes").mkdir()
    (out / "notes/thesis.txt").write_text("three years of work")
    assert "is not only a merged model, it holds notes/thesis.txt" in refused(*words, out)
    full = shutil.copytree(tiny_deepseek, tmp_path / "full")  # as a full fine-tune's final_model
    (full / "run_manifest.json").write_text("{}")
    assert "is not a model that sft/merge.py wrote" in refused(*words, full)
    assert (full / "model.safetensors").exists()


def test_merging_takes_the_memory_of_one_copy(tmp_path, deepseek_tokenizer):
    """Memory that the system cannot take back (file pages it can), at the peak, over that of the libraries alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = tmp_path / "base"
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 10, "num_attention_heads": 8}
    ends = {"bos_token_id": deepseek_tokenizer.bos_token_id, "eos_token_id": deepseek_tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(deepseek_tokenizer), **sizes, **ends)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    model.save_pretrained(base)
    deepseek_tokenizer.save_pretrained(base)
    size = sum(parameter.numel() * 2 for parameter in model.parameters())
    del model
    adapter = random_adapter(base, tmp_path / "adapter")

    program = tmp_path / "measure.py"
    program.write_text(MEASURE)
    words = [sys.executable, program, "--model_path", adapter, "--output_dir", tmp_path / "merged"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    copies = int(done.stdout.rpartition("PEAK ")[2]) * 1024 / size
    print(f"{copies:.2f} copies of {size / 2**30:.2f} GiB")
    assert copies < 1.2
