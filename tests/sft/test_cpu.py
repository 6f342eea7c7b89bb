"""Training on a CPU: the patch changes speed alone, and a CPU without bfloat16 is not asked for it."""

import json

import pytest


@pytest.fixture
def original():
    """TRL as it was before and is after the test."""
    from trl.trainer import utils

    before = utils._use_triton
    yield utils
    utils._use_triton = before


def test_loss_and_gradients_are_those_of_all_positions(original, tiny_deepseek):
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from sft.cpu import score_labelled_positions_only

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (3, 20), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.2, ids, -100)
    labels[2] = -100  # a row without labels

    def gradients(model, loss) -> torch.Tensor:
        loss.backward()
        return torch.cat([p.grad.flatten().double() for p in model.parameters()])

    def fused() -> tuple[float, torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
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


def test_other_versions_stay_untouched(original, monkeypatch):
    import trl

    from sft.cpu import score_labelled_positions_only

    before = original._use_triton
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    assert not score_labelled_positions_only()
    assert original._use_triton is before


@pytest.fixture
def without_bf16(monkeypatch):
    """A CPU as most laptops have: AVX2."""
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True})


def test_a_cpu_without_bfloat16_is_known(without_bf16, monkeypatch):
    import torch

    from sft.hardware import cpu_has_bf16

    assert not cpu_has_bf16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64", "bf16": True})
    assert cpu_has_bf16()


def test_the_quickstart_trains_in_float32_there_with_settings_that_the_recipe_takes(without_bf16, monkeypatch):
    from sft import quickstart
    from sft.config import resolve

    changed = [step for step, usual in zip(quickstart.steps(), quickstart.STEPS, strict=True) if step != usual]
    assert [step.name for step in changed] == ["train"]
    settings = resolve(changed[0].command.split("sft/run.py")[1].split())
    assert (settings.precision, settings.dtype) == ("no", "float32")
    monkeypatch.setattr(quickstart, "cpu_has_bf16", lambda: True)
    assert quickstart.steps() == quickstart.STEPS


def test_questions_are_asked_in_float32_there_and_the_results_say_so(
    here, without_bf16, tiny_deepseek, prepared, tmp_path
):
    words = ("--model_path", tiny_deepseek, "--dataset_path", prepared, "--num_samples", "4", "--output_dir", tmp_path)
    for dtype, options in (("float32", ()), ("bfloat16", ("--dtype", "bfloat16"))):  # whoever asks for bf16 gets it
        done = here("sft/evaluate.py", *words, "--name", dtype, *options)
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / dtype / "results.json").read_text())
        assert results["fingerprint"]["options"]["dtype"] == dtype


def test_a_recipe_in_bfloat16_is_warned_there(here, without_bf16, tiny_deepseek, prepared):
    words = ("sft/preflight.py", "recipes/quickstart.yaml", "--model_name_or_path", tiny_deepseek)
    template = ("--chat_template_path", "recipes/templates/deepseek_r1.jinja", "--dataset_name", prepared)
    assert "slower in bf16 than in float32" in here(*words, *template).stdout
    assert "slower in bf16" not in here(*words, *template, "--bf16", "no", "--dtype", "float32").stdout
