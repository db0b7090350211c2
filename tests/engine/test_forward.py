"""Jobs are run once each, whatever they are split into and whoever runs them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.engine.forward import Depths, Inputs, Job, attempt, run
from streamline.engine.memory import BatchLimit
from streamline.engine.paths import Path, dense_path, prefix_paths
from streamline.errors import StreamlineError
from streamline.testing.models import tiny_model


@dataclass(frozen=True)
class LastLogits(Job):
    """The logits after the last token of some sequences, [B, V]."""

    tokens: Tensor

    @property
    def n_tokens(self) -> int:
        return self.tokens.numel()

    def inputs(self, decoder: Decoder) -> Inputs:
        return self.tokens, None, None

    def keep(self, hidden: Tensor) -> Tensor:
        return hidden[:, -1]

    def answer(self, decoder: Decoder, kept: Tensor) -> Tensor:
        return decoder.leave(kept).clone()

    def split(self) -> list[LastLogits]:
        return [LastLogits(part) for part in self.tokens.chunk(2)] if len(self.tokens) > 1 else []


def ids(n: int) -> Tensor:
    return torch.randint(0, 250, (n, 8), generator=torch.Generator().manual_seed(1))


def paths(model_seed: int = 0) -> list[Path]:
    decoder = Decoder(tiny_model("llama", n_layers=4, seed=model_seed))
    dense = dense_path(decoder)
    return [dense, Path(decoder, dense.nodes[:2])]


def test_each_job_gives_one_result_for_each_path() -> None:
    both = [*paths(), *paths(1)]
    seen: list[tuple[int, int]] = []
    jobs = [LastLogits(part) for part in torch.split(ids(5), 2)]
    found = list(run(both, jobs, progress=lambda *p: seen.append(p)))
    assert [job for job, _ in found] == jobs
    assert seen == [(16, 40), (32, 40), (40, 40)]
    for job, answers in found:
        for path, logits in zip(both, answers, strict=True):
            entry = path.decoder.enter(job.tokens)
            hidden = entry.hidden
            for node in path.nodes:
                hidden = path.decoder.run(node.module, hidden, entry, node.layer)
            torch.testing.assert_close(logits, path.decoder.leave(hidden)[:, -1])


def test_what_does_not_fit_is_split_and_the_rest_kept_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, whole = paths(), LastLogits(ids(6))
    wanted = attempt(both, whole)
    enter = Decoder.enter

    def scarce(decoder: Decoder, tokens: Tensor, *rest: Tensor | None) -> object:
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enter(decoder, tokens, *rest)

    monkeypatch.setattr(Decoder, "enter", scarce)
    limit = BatchLimit()
    found = list(run(both, [whole, whole], limit=limit))
    assert limit.tokens is not None and limit.tokens <= 24
    assert torch.equal(torch.cat([job.tokens for job, _ in found]), torch.cat([whole.tokens] * 2))
    for index, logits in enumerate(wanted):
        together = torch.cat([answers[index] for _, answers in found])
        torch.testing.assert_close(together, torch.cat([logits] * 2))
    with pytest.raises(StreamlineError, match="memory ran out with a batch of 40 tokens alone"):
        list(run(both, [Depths(ids(5))]))


def test_prefixes_give_the_states_at_their_depths() -> None:
    decoder = paths()[0].decoder
    ((_, states),) = run(prefix_paths(decoder, [3, 0, 4]), [Depths(ids(2))])
    expected = [hidden for _, hidden in decoder.trace(decoder.enter(ids(2)))]
    for depth, hidden in zip((0, 3, 4), states, strict=True):
        torch.testing.assert_close(hidden, expected[depth])


def test_states_for_training_can_enter_a_computation_with_gradients() -> None:
    decoder = paths()[0].decoder
    entry = decoder.enter(ids(2))
    ((_, (hidden,)),) = run(prefix_paths(decoder, [2]), [Depths(ids(2), entry, for_training=True)])
    weight = torch.ones(hidden.shape[-1], requires_grad=True)
    (hidden * weight).sum().backward()
    assert weight.grad is not None
    assert list(run([], [])) == []
