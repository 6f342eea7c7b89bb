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
