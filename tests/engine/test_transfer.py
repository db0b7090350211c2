"""What an accelerator has to say is read one batch later, and nothing before that waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from some_paths import some_paths
from torch import Tensor
from transformers import masking_utils

from streamline.engine import forward
from streamline.engine.decoder import Decoder
from streamline.engine.forward import TokenJob, run
from streamline.engine.transfer import Later, onto, read
from streamline.evaluation.scoring.score import Request, score
from streamline.testing.models import tiny_model

REQUESTS = [
    Request("t", i // 2, i % 2, tuple(range(3, 12 + i // 2)), tuple(range(40, 43 + i)))
    for i in range(8)
]


def ids(n: int, length: int = 8) -> Tensor:
    return torch.randint(0, 250, (n, length), generator=torch.Generator().manual_seed(1))


class Noted(TokenJob):
    """Says in a log when it is run and when its result is made."""

    log: list[str]

    def combine(self, answers: list[Any]) -> Later:
        name = str(len(self.tokens))
        self.log.append(f"run {name}")

        def made(tensors: list[Tensor]) -> float:
            self.log.append(f"read {name}")
            return float(tensors[0].sum())

        return Later(answers, made)


@pytest.mark.parametrize("late", [False, True])
def test_results_come_in_their_order(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    Noted.log = []
    monkeypatch.setattr(Later, "owed", property(lambda self: late))
    paths = some_paths(Decoder(tiny_model("llama", n_layers=2)))
    jobs = [Noted(ids(n)) for n in (1, 2, 3)]
    seen: list[tuple[int, int]] = []
    found = list(run(paths, jobs, progress=lambda *p: seen.append(p)))
    assert [job for job, _ in found] == jobs
    assert [value for _, value in found] == [forward.attempt(paths, job) for job in jobs]
    assert seen == [(8, 48), (24, 48), (48, 48)]
    in_turn = ["run 1", "read 1", "run 2", "read 2", "run 3", "read 3"]
    later = ["run 1", "run 2", "read 1", "run 3", "read 2", "read 3"]
    assert Noted.log[:6] == (later if late else in_turn)


def test_a_job_is_made_beside_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    Noted.log = []
    monkeypatch.setattr(Later, "owed", property(lambda self: True))
    paths = some_paths(Decoder(tiny_model("llama", n_layers=2)))
    expected, seen = [50], list[tuple[int, int]]()

    def jobs() -> Iterator[Noted]:
        for n in (1, 2, 3):
            Noted.log.append(f"make {n}")
            yield Noted(ids(n))
        expected[0] = 48

    found = run(paths, jobs(), n_tokens=lambda: expected[0], progress=lambda *p: seen.append(p))
    assert [len(job.tokens) for job, _ in found] == [1, 2, 3]
    assert Noted.log == [
        *("make 1", "run 1", "make 2", "run 2", "read 1"),
        *("make 3", "run 3", "read 2", "read 3"),
    ]
    assert seen == [(8, 50), (24, 50), (48, 48)]


def test_answers_do_not_depend_on_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = some_paths(Decoder(tiny_model("llama", n_layers=3)))
    in_turn = score(paths, REQUESTS, batch_tokens=40)
    monkeypatch.setattr(Later, "owed", property(lambda self: True))
    for one, other in zip(in_turn, score(paths, REQUESTS, batch_tokens=40), strict=True):
        assert np.array_equal(one.loglikelihood, other.loglikelihood)
        assert np.array_equal(one.greedy, other.greedy)


def test_rows_are_not_searched_for_several_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(position_ids: Tensor) -> Tensor:
        raise AssertionError("the device is asked")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", asked)
    decoder = Decoder(tiny_model("llama", n_layers=2))
    assert torch.equal(decoder.logits(ids(2)), decoder.logits(ids(2)))
    assert masking_utils.find_packed_sequence_indices is asked
    with pytest.raises(AssertionError, match="the device is asked"):
        decoder.enter(ids(2), position_ids=torch.arange(8)[None])


def test_on_a_cpu_nothing_is_copied() -> None:
    values = torch.ones(3)
    later = Later([values], lambda tensors: tensors[0])
    assert later.value() is values and not later.owed
    assert onto(values, torch.device("cpu")) is values
    assert read(later) is values and read(3) == 3
