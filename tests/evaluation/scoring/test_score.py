"""The scorer against one request at a time."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import THREE
from torch import nn
from transformers import PreTrainedModel

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder, Entry
from streamline.engine.paths import Node, Path, dense_path
from streamline.errors import StreamlineError
from streamline.evaluation.scoring import tree_length
from streamline.evaluation.scoring.packing import Request, pack
from streamline.evaluation.scoring.score import TokenBudget, score, score_batches
from streamline.testing.models import tiny_model


def questions(n: int = 12, seed: int = 0, task: str = "t", longest: int = 30) -> list[Request]:
    """Options behind a context, contexts that differ in the middle, a common prefix, repeats."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(256) for _ in range(rng.randint(low, high)))

    prefix = ids(5, 9)
    requests = []
    for doc in range(n):
        stem = prefix + ids(3, longest)
        if doc % 4 == 3:
            tail = ids(2, 6)
            pairs = [(stem + ids(1, 2), tail) for _ in range(2)]
        elif doc % 4 == 2:
            pairs = [(stem, (token,)) for token in ids(4, 4)]
        else:
            pairs = [(stem, ids(1, 8)) for _ in range(4)]
        pairs.append(pairs[0])
        requests += [Request(task, doc, i, c, o) for i, (c, o) in enumerate(pairs)]
    return requests


@torch.no_grad()
def one_at_a_time(model: PreTrainedModel, requests: list[Request]) -> np.ndarray:
    values = []
    for request in requests:
        logits = model(torch.tensor([request.inputs])).logits[0].float().log_softmax(-1)
        n = len(request.continuation)
        target = torch.tensor(request.continuation)
        values.append(logits[-n:].gather(1, target[:, None]).double().sum().item())
    return np.array(values)


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-5)


KINDS = [(family, attention) for family in THREE for attention in ("eager", "sdpa")]


@pytest.mark.parametrize(("family", "implementation"), KINDS)
@pytest.mark.parametrize("batch_tokens", [40, 4096])
def test_scores_equal_one_request_at_a_time(
    family: str, implementation: str, batch_tokens: int
) -> None:
    model = tiny_model(family, n_layers=3)
    model.set_attn_implementation(implementation)
    requests = questions()
    (answers,) = score([dense_path(Decoder(model))], requests, batch_tokens=batch_tokens)
    close(answers.loglikelihood, one_at_a_time(model, requests))
    assert answers.n_tokens.tolist() == [len(r.continuation) for r in requests]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_long_prefixes_are_attended_in_blocks(implementation: str) -> None:
    model = tiny_model("qwen3", n_layers=2)
    model.set_attn_implementation(implementation)
    rng = random.Random(3)
    shots = tuple(rng.randrange(256) for _ in range(150))
    passages = [shots + tuple(rng.randrange(256) for _ in range(120)) for _ in range(2)]
    requests = [
        Request("t", doc, i, passages[doc % 2] + r.context, r.continuation)
        for doc, r in enumerate(questions(12))
        for i in range(2)
    ]
    (answers,) = score([dense_path(Decoder(model))], requests, batch_tokens=2000)
    close(answers.loglikelihood, one_at_a_time(model, requests))
    assert model.config._attn_implementation == implementation


def test_many_paths_share_one_walk(tiny_llama: Callable[..., PreTrainedModel]) -> None:
    model = tiny_llama(n_layers=5)
    decoder = Decoder(model)
    identity = nn.Identity()
    identity.forward = lambda hidden, *args, **kwargs: hidden  # type: ignore[method-assign]
    dropped = Path(decoder, tuple(Node(decoder.layers[i], i) for i in (0, 1, 4)))
    replaced = Path(decoder, (*dropped.nodes[:2], Node(identity, 2), dropped.nodes[2]))
    requests = questions()
    dense, some, same = score([dense_path(decoder), dropped, replaced], requests)
    close(dense.loglikelihood, one_at_a_time(model, requests))
    close(some.loglikelihood, one_at_a_time(assemble(dropped), requests))
    close(same.loglikelihood, some.loglikelihood)


def test_paths_of_different_models_are_scored_together() -> None:
    models = [tiny_model("llama", seed=0, n_layers=2), tiny_model("opt", seed=1, n_layers=2)]
    requests = questions(4)
    answers = score([dense_path(Decoder(model)) for model in models], requests)
    for model, got in zip(models, answers, strict=True):
        close(got.loglikelihood, one_at_a_time(model, requests))


def test_greedy_is_the_argmax_of_every_token() -> None:
    model = tiny_model("llama", n_layers=2)
    context = (1, 2, 3)
    with torch.no_grad():
        best = model.generate(
            torch.tensor([context]), max_new_tokens=3, min_new_tokens=3, do_sample=False
        )[0, 3:].tolist()
    worse = [*best[:2], (best[2] + 1) % 256]
    requests = [Request("t", 0, i, context, tuple(o)) for i, o in enumerate((best, worse))]
    (answers,) = score([dense_path(Decoder(model))], requests)
    assert answers.greedy.tolist() == [True, False]


def test_a_sliding_window_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("mistral", n_layers=2, sliding_window=16)
    requests = questions(8)
    tree_length._named.clear()
    with caplog.at_level(logging.WARNING):
        (answers,) = score([dense_path(Decoder(model))], requests)
    close(answers.loglikelihood, one_at_a_time(model, requests))
    assert "sequences of more than 16 tokens are scored one a row" in caplog.text


def test_bfloat16_is_near_float32() -> None:
    model = tiny_model("llama", n_layers=2)
    requests = questions(6)
    wanted = one_at_a_time(model, requests)
    (answers,) = score([dense_path(Decoder(model.to(torch.bfloat16)))], requests)
    np.testing.assert_allclose(answers.loglikelihood, wanted, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("family", ["bloom", "llama"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_loses_no_answer(
    family: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family, n_layers=2)
    requests = [*questions(8), *questions(8, task="u", seed=1)]
    enter, sizes = Decoder.enter, []

    def scarce(decoder: Decoder, ids: torch.Tensor, *rest: Any) -> Entry:
        sizes.append(ids.numel())
        if ids.numel() > 150:
            raise error
        return enter(decoder, ids, *rest)

    monkeypatch.setattr(Decoder, "enter", scarce)
    budget = TokenBudget(4096)
    (answers,) = score([dense_path(Decoder(model))], requests, batch_tokens=budget)
    monkeypatch.undo()
    close(answers.loglikelihood, one_at_a_time(model, requests))
    failed = [size for size in sizes if size > 150]
    assert failed == sorted(failed, reverse=True)
    assert sizes.index(failed[-1]) == len(failed) - 1  # nothing as large is tried again
    assert max(budget.facts().values()) <= 150


def test_a_request_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(decoder: Decoder, *rest: Any) -> Entry:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Decoder, "enter", never)
    path = dense_path(Decoder(tiny_model("llama", n_layers=1)))
    requests = [Request("t", 5, 1, (1, 2, 3), (4, 5)), Request("t", 6, 0, (1, 7), (4,))]
    with pytest.raises(StreamlineError, match="4 tokens .option 1 of question 5 of t. alone"):
        score([path], requests)


def test_the_numbers_do_not_depend_on_the_other_paths() -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    variant = Path(decoder, dense_path(decoder).nodes[:2])
    requests = questions(10)
    together = score([dense_path(decoder), variant], requests)[1].loglikelihood
    alone = score([variant], requests)[0].loglikelihood
    assert together.tolist() == alone.tolist()


def test_batches_come_task_by_task_with_progress() -> None:
    decoder = Decoder(tiny_model("llama", n_layers=1))
    requests = [*questions(6, task="a"), *questions(6, task="b", seed=1)]
    seen: list[tuple[int, int]] = []
    tasks = []
    for indices, (answers,) in score_batches(
        [dense_path(decoder)],
        requests,
        batch_tokens=64,
        progress=lambda done, total: seen.append((done, total)),
    ):
        tasks += [requests[i].task for i in indices]
        assert len(indices) == len(answers.loglikelihood)
    assert tasks == sorted(tasks) and len(tasks) == len(requests)
    assert seen[-1][0] == seen[-1][1] == sum(b.n_tokens for b in pack(requests, batch_tokens=64))
