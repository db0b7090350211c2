"""Several sets in one run: when each is packed, and what is said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.engine.transfer import Later
from streamline.evaluation.scoring import together
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import RequestBatch, question_jobs, score
from streamline.evaluation.scoring.together import answer_all
from streamline.testing.models import tiny_model

SETS = [
    [Request(name, i, 0, tuple(range(3, 9 + i)), (40 + i, 50)) for i in range(n)]
    for name, n in (("a", 4), ("b", 0), ("c", 3))
]
WINDOWS = torch.arange(48).view(3, 16)


@pytest.fixture
def paths() -> list[Path]:
    decoder = Decoder(tiny_model("llama", n_layers=3))
    dense = dense_path(decoder)
    return [dense, dense.without(1)]


@pytest.mark.parametrize("late", [False, True])
def test_sets_together_are_sets_alone(
    paths: list[Path], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Later, "owed", property(lambda self: late))
    seen: list[tuple[int, int]] = []
    used: dict[int, dict[str, int]] = {}
    found = answer_all(
        paths, SETS, [WINDOWS], batch_tokens=24, used=used, progress=lambda *p: seen.append(p)
    )
    results = dict(found)
    assert list(results) == [0, 1, 2, 3]
    for requests, answers in zip(SETS, list(results.values())[:3], strict=True):
        for one, other in zip(answers, score(paths, requests, batch_tokens=24), strict=True):
            assert np.array_equal(one.loglikelihood, other.loglikelihood)
    assert results[3] == perplexity(paths, WINDOWS, batch_tokens=24)
    assert used == {number: {"given": 24} for number in (0, 2, 3)} | {1: used[1]}
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1][0] == seen[-1][1] >= seen[0][1] - 4


def test_a_set_is_packed_beside_the_last_batch_before_it(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr(Later, "owed", property(lambda self: True))
    combine = RequestBatch.combine

    def packed(paths: Any, requests: Any, *given: Any, **more: Any) -> Any:
        log.extend(f"pack {request.task}" for request in requests[:1])
        return question_jobs(paths, requests, *given, **more)

    def ran(self: RequestBatch, answers: list[Any]) -> Any:
        log.append(f"run {self.batch.task}")
        return combine(self, answers)

    monkeypatch.setattr(together, "question_jobs", packed)
    monkeypatch.setattr(RequestBatch, "combine", ran)
    for number, _ in answer_all(paths, SETS, batch_tokens=1000):
        log.append(f"got {number}")
    assert log == ["pack a", "run a", "pack c", "run c", "got 0", "got 1", "got 2"]
