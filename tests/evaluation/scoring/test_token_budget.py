"""The size of batches: given, by default, by trial, after a failure, and from an earlier run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from damages import DAMAGES

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path as LayerPath
from streamline.engine.paths import dense_path
from streamline.evaluation.scoring import token_budget
from streamline.evaluation.scoring.packing import Batch, Request, pack
from streamline.evaluation.scoring.score import score
from streamline.evaluation.scoring.token_budget import TokenBudget, doubled, synthetic
from streamline.kept import read_json
from streamline.testing.models import tiny_model


def paths(n_layers: int = 1) -> list[LayerPath]:
    return [dense_path(Decoder(tiny_model("llama", n_layers=n_layers)))]


def never(batch: Batch) -> None:
    raise AssertionError("nothing is to be tried")


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU pass for an accelerator."""
    monkeypatch.setattr(Decoder, "device", torch.device("mps"))


def test_doubling_ends_when_memory_does_and_when_nothing_is_gained() -> None:
    def scarce(n_tokens: int) -> float:
        if n_tokens > 4000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    assert list(doubled(scarce, 1024, 1 << 20)) == [(1024, 1024.0), (2048, 2048.0), (4096, None)]
    flat = list(doubled(lambda n: max(n, 3000) / 1e6, 1024, 1 << 20))
    assert [n for n, _ in flat] == [1024, 2048, 4096, 8192]
    assert [n for n, _ in doubled(lambda n: 1.0, 1024, 4096)] == [1024, 2048, 4096]


def test_a_fault_in_a_trial_is_no_lack_of_memory() -> None:
    def broken(n_tokens: int) -> float:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(doubled(broken, 1024, 4096))


def test_a_cpu_keeps_its_default_and_a_given_size_is_taken() -> None:
    few = {"work": 10**9, "width": 40, "attempt": never}
    assert TokenBudget().tokens(paths(), **few) == token_budget.CPU_TOKENS
    given = TokenBudget(300)
    assert given.tokens(paths(), **few) == 300
    assert given.facts() == {"given": 300}


def test_little_work_is_not_worth_a_trial(accelerated: None) -> None:
    budget = TokenBudget()
    tokens = budget.tokens(paths(), work=1000, width=40, attempt=never)
    assert tokens == token_budget.ACCELERATOR_TOKENS
    assert budget.facts() == {"default": tokens}


def test_a_trial_keeps_a_margin_and_is_done_once(
    accelerated: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(token_budget.time, "perf_counter", lambda: float(next(clock)))

    def attempt(batch: Batch) -> None:
        if batch.cost > 9000:
            raise torch.OutOfMemoryError("CUDA out of memory")

    known = {"work": 10**9, "width": 40}
    tokens = TokenBudget(folder=tmp_path).tokens(paths(), attempt=attempt, **known)
    assert tokens == 6144  # whole rows of 512, at most 0.8 of 8192
    later = TokenBudget(folder=tmp_path)
    assert later.tokens(paths(), attempt=never, **known) == tokens
    assert list(later.facts().values()) == [tokens]
    (file,) = tmp_path.iterdir()
    assert read_json(file)["branches"] == 1
    for damage in DAMAGES.values():
        damage(file)
        assert TokenBudget(folder=tmp_path).tokens(paths(), attempt=attempt, **known) == tokens
    other = []
    TokenBudget(folder=tmp_path).tokens(paths(2), attempt=other.append, **known)
    assert other


def test_memory_that_ran_out_shrinks_the_budget_for_good(tmp_path: Path) -> None:
    budget, few = TokenBudget(4096, tmp_path), {"work": 10, "width": 40, "attempt": never}
    walked = paths()
    assert budget.tokens(walked, **few) == 4096
    budget.shrink(walked, 40, None)
    assert budget.tokens(walked, **few) == 4096
    budget.shrink(walked, 40, 1000)
    assert budget.tokens(walked, **few) == 1000
    assert TokenBudget(4096, tmp_path).tokens(walked, **few) == 1000
    assert TokenBudget(500, tmp_path).tokens(walked, **few) == 500
    assert list(budget.facts()) == ["halved: 1 model, 1 layers, rows to 512 tokens"]


def test_the_worst_batch_scores_every_token() -> None:
    batch = synthetic(3, 16, 50)
    assert (batch.cost, len(batch.scored), batch.tree) == (48, 48, True)
    assert batch.padded("tokens").max() < 50


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_real_trial_finds_a_size_and_changes_no_answer(
    family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = dense_path(Decoder(tiny_model(family, n_layers=1)))
    requests = [Request("t", i, 0, (1, 2, i), (3, 4)) for i in range(20)]
    (wanted,) = score([path], requests)
    monkeypatch.setattr(token_budget, "CPU_TOKENS", 1)
    monkeypatch.setattr(token_budget, "MOST_TOKENS", 1024)
    monkeypatch.setattr(token_budget, "FIRST_TOKENS", 512)
    tried = TokenBudget(folder=tmp_path)
    monkeypatch.setattr(token_budget, "can_try", lambda decoder: True)
    (found,) = score([path], requests, batch_tokens=tried)
    assert found.loglikelihood == pytest.approx(wanted.loglikelihood, abs=1e-5)
    (label,) = tried.facts()
    assert label.startswith("trial: 1 model, 1 layers")
    assert tried.facts()[label] in (512, 1024)
    assert len(pack(requests, batch_tokens=512)) == 1
