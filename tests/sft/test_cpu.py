"""The CPU patch changes speed alone."""

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

    def loss_and_gradients() -> tuple[float, list]:
        model = AutoModelForCausalLM.from_pretrained(tiny_deepseek, dtype=torch.float32)
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        output = model(input_ids=ids, labels=labels, fused_lm_head=True)
        output.loss.backward()
        return output.loss.item(), [p.grad for p in model.parameters()]

    loss, gradients = loss_and_gradients()
    assert score_labelled_positions_only()
    patched_loss, patched_gradients = loss_and_gradients()
    assert patched_loss == pytest.approx(loss, rel=1e-6)
    for patched, plain in zip(patched_gradients, gradients, strict=True):
        torch.testing.assert_close(patched, plain, rtol=1e-5, atol=1e-7)


def test_other_versions_stay_untouched(original, monkeypatch):
    import trl

    from sft.cpu import score_labelled_positions_only

    before = original._use_triton
    monkeypatch.setattr(trl, "__version__", "1.17.0")
    assert not score_labelled_positions_only()
    assert original._use_triton is before
