"""Training on a CPU: the patch changes speed alone, and a CPU without bfloat16 is not asked for it."""

import json
import re

import pytest
import torch
import trl
import yaml
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM, LlamaForCausalLM
from trl.trainer import utils

from sft.common.models import cpu_has_bf16
from sft.training.checks import for_this_cpu
from sft.training.config import resolve
from sft.training.launch import Launch
from sft.training.model import attention_implementation, score_labelled_positions_only


@pytest.fixture(autouse=True)
def original(monkeypatch):
    """TRL is after the test as it was before."""
    monkeypatch.setattr(utils, "_use_triton", utils._use_triton)


def test_loss_and_gradients_are_those_of_all_positions(tiny_deepseek):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (3, 20), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.2, ids, -100)
    labels[2] = -100  # a row without labels

    def gradients(model, loss) -> torch.Tensor:
        loss.backward()
        return torch.cat([p.grad.flatten().double() for p in model.parameters()])

    def fused() -> tuple[float, torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32)
        utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        loss = model(input_ids=ids, labels=labels, fused_lm_head=True).loss
        return loss.item(), gradients(model, loss)

    exact_model = AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float64)
    logits = exact_model(ids).logits[:, :-1].flatten(0, 1)
    exact = gradients(exact_model, torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()))

    loss, plain = fused()
    assert score_labelled_positions_only()
    patched_loss, patched = fused()
    assert patched_loss == pytest.approx(loss, rel=1e-6)
    # A gradient is a sum over the vocabulary. Rounding each term in float32 leaves an error that grows with the root
    # of their number, in whatever order they are summed; both ways must be that close to the exact gradients.
    rounding = torch.finfo(torch.float32).eps * exact_model.config.vocab_size**0.5
    assert (plain - exact).norm() <= rounding * exact.norm()
    assert (patched - exact).norm() <= rounding * exact.norm()


def test_other_versions_stay_untouched(monkeypatch):
    before = utils._use_triton
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    assert not score_labelled_positions_only()
    assert utils._use_triton is before


@pytest.fixture
def cpu(monkeypatch):
    """Let torch find a CPU with these capabilities."""

    def pretend(level: str, **capabilities: bool) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    return pretend


@pytest.fixture
def without_bf16(cpu):
    """A CPU as most laptops have: AVX2."""
    cpu("AVX2", avx2=True)


@pytest.mark.parametrize(
    ("level", "capabilities", "has"),
    [
        ("AVX2", {"avx2": True}, False),
        ("AVX512", {"avx2": True, "avx512_f": True}, False),
        ("AVX512", {"avx512_f": True, "avx512_bf16": True}, True),
        ("AVX2", {"avx512_f": True, "avx512_bf16": True}, False),  # ATEN_CPU_CAPABILITY=avx2
        ("DEFAULT", {"bf16": True}, True),  # ARM
    ],
)
def test_a_cpu_without_bfloat16_is_known(cpu, level, capabilities, has):
    cpu(level, **capabilities)
    assert cpu_has_bf16() == has


@pytest.mark.parametrize(("model", "attention"), [(LlamaForCausalLM, "sdpa"), (Gemma2ForCausalLM, "eager")])
def test_attention_is_one_that_the_model_has(model, attention):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 16}
    config = model.config_class(**sizes, num_attention_heads=2, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    assert attention_implementation(torch.device("cpu"), "bf16", model) == attention
    model._from_config(config, attn_implementation=attention)  # raises for one that it does not have


@pytest.mark.parametrize("recipe", ["pmcvqa", "pmcvqa_16gb"], ids=["8-bit", "4-bit"])
def test_a_run_is_in_float32_there_adapters_included_and_says_so(
    succeeds, without_bf16, toy_options, tmp_path, recipe
):
    """Quantised weights too, whose adapters TRL would keep in bfloat16."""
    done = succeeds("sft/run.py", *toy_options(recipe), "--output_dir", tmp_path / "out", "--max_steps", "2")
    assert "Precision: float32, because this CPU has no bfloat16 instructions; frozen weights" in done.stdout
    assert re.search(r"Trained parameters: float32 \S+M \(", done.stdout)
    assert "bfloat16" not in re.search(r"Frozen parameters: (.*)", done.stdout)[1]
    # The recipe that travels with the model trains the same elsewhere.
    recipe = yaml.safe_load((tmp_path / "out/final_model/recipe.yaml").read_text())
    assert (recipe["bf16"], recipe["dtype"]) == (False, "float32")


def test_a_plan_for_a_gpu_and_a_cpu_with_bfloat16_keep_the_recipes_type(without_bf16, cpu):
    gpu, on_cpu = resolve(["recipes/pmcvqa.yaml"]), resolve(["recipes/pmcvqa.yaml", "--use_cpu", "yes"])
    assert for_this_cpu(gpu, Launch()) == gpu
    assert for_this_cpu(on_cpu, Launch()).precision == "no"
    cpu("AVX512", avx512_bf16=True)
    assert for_this_cpu(on_cpu, Launch()) == on_cpu


@pytest.mark.parametrize(("options", "dtype"), [((), "float32"), (("--dtype", "bfloat16"), "bfloat16")])
def test_an_evaluation_is_in_float32_there_unless_bf16_is_asked_for(
    succeeds, without_bf16, tiny_deepseek, prepared, tmp_path, options, dtype
):
    words = ("--model_path", tiny_deepseek, "--dataset_path", prepared, "--num_samples", "4", "--output_dir", tmp_path)
    succeeds("sft/evaluate.py", *words, "--name", "run", *options)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["fingerprint"]["options"]["dtype"] == dtype
