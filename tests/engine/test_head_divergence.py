"""The loss of distillation against the formula on whole logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from streamline.engine import head
from streamline.engine.decoder import Decoder

IDS = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
SCORED = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.6


def states(seed: int) -> Tensor:
    return torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("text", [0.0, 0.3])
@pytest.mark.parametrize("rows", [4, 1024])
def test_chunks_give_the_naive_loss_and_its_gradients(
    tiny_llama: Callable[..., nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    top_k: int | None,
    temperature: float,
    rows: int,
    text: float,
) -> None:
    monkeypatch.setattr(head, "_TRAINING_ROWS", rows)
    dense, student = (Decoder(tiny_llama(n_layers=1, seed=seed).double()) for seed in (0, 1))
    wanted, hidden = states(2), states(3).requires_grad_()
    loss = head.summed_divergence(
        (dense, wanted), (student, hidden), IDS, SCORED,
        temperature=temperature, top_k=top_k, text=text,
    )  # fmt: skip
    weight = student.model.lm_head.weight
    found = torch.autograd.grad(loss, [hidden, weight])

    keep = SCORED[:, 1:]
    t = dense.leave(wanted)[:, :-1][keep].detach()
    s = student.leave(hidden)[:, :-1][keep]
    own = -s.log_softmax(-1).gather(-1, IDS[:, 1:][keep][:, None]).sum()
    if top_k is not None:
        t, places = t.topk(top_k, dim=-1)
        s = s.gather(-1, places)
    p, q = (t / temperature).softmax(-1), (s / temperature).log_softmax(-1)
    naive = (1 - text) * temperature**2 * (p * (p.log() - q)).sum() + text * own
    assert float(loss.detach()) == pytest.approx(float(naive.detach()), rel=1e-5)
    for mine, true in zip(found, torch.autograd.grad(naive, [hidden, weight]), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5 * float(true.abs().max()))


def test_all_of_the_vocabulary_is_no_choice(tiny_llama: Callable[..., nn.Module]) -> None:
    dense, student = (Decoder(tiny_llama(n_layers=1, seed=seed)) for seed in (0, 1))
    pair = (dense, states(2).float()), (student, states(3).float())
    size = dense.config.vocab_size
    with torch.no_grad():
        whole = head.summed_divergence(*pair, IDS)
        for top_k in (size, size + 1):
            assert torch.equal(head.summed_divergence(*pair, IDS, top_k=top_k), whole)
        assert float(head.summed_divergence(*pair, IDS, top_k=size // 2)) != float(whole)


def test_a_high_temperature_keeps_the_size_of_gradients() -> None:
    """T**2 times the divergence tends to half the variance of the logits' differences."""
    g = torch.Generator().manual_seed(0)
    t, s = (torch.randn(4, 50, generator=g, dtype=torch.float64) for _ in range(2))
    hot = 1e3**2 * head.divergence(t / 1e3, s / 1e3)
    torch.testing.assert_close(hot, (t - s).var(-1, correction=0) / 2, rtol=1e-2, atol=0)


def test_the_gradient_of_the_divergence_is_right() -> None:
    g = torch.Generator().manual_seed(0)
    t, s = (torch.randn(3, 5, generator=g, dtype=torch.float64) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: head.divergence(t, x), s.requires_grad_())
    same = t.clone().requires_grad_()
    head.divergence(t, same).sum().backward()
    assert torch.equal(same.grad, torch.zeros_like(t))
