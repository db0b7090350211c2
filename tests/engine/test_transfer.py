"""What an accelerator has to say is read one batch later, and nothing before that waits for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

from streamline.calibration import measure
from streamline.engine import forward, transfer
from streamline.engine.decoder import Decoder
from streamline.engine.forward import TokenJob, run
from streamline.engine.paths import Node, Path, dense_path
from streamline.engine.transfer import Later, onto, read
from streamline.evaluation.generation.engine import Limits, generate
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import Request, question_jobs, score
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.methods import loss
from streamline.methods.divergence import Divergences
from streamline.testing.models import tiny_config, tiny_model, tiny_tokenizer

REQUESTS = [
    Request("t", i // 2, i % 2, tuple(range(3, 12 + i // 2)), tuple(range(40, 43 + i)))
    for i in range(8)
]


def ids(n: int, length: int = 8) -> Tensor:
    return torch.randint(0, 250, (n, length), generator=torch.Generator().manual_seed(1))


def some_paths(decoder: Decoder) -> list[Path]:
    """Dense, a layer dropped, and a layer twice."""
    dense = dense_path(decoder)
    twice = (dense.nodes[0], Node(decoder.layers[0], 0), *dense.nodes[1:])
    return [dense, dense.without(1), Path(decoder, twice)]


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


class Waits(TorchDispatchMode):
    """Notes copies to a device for which the program waits until it has done all before."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name in ("_to_copy", "copy_"):
            tensors = [v for v in tree_leaves((args, out)) if isinstance(v, Tensor)]
            late = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2])
            if len({tensor.device for tensor in tensors}) > 1 and not late:
                self.found.append(f"{name} of {list(tensors[0].shape)}")
        return out


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    """A model on a device without data: whatever asks for a value there is an error."""
    monkeypatch.setattr(transfer, "ASYNCHRONOUS", {"meta"})
    monkeypatch.setattr(transfer, "off", lambda t: torch.zeros(t.shape, dtype=t.dtype))
    decoder = Decoder.from_config(tiny_config("llama", n_layers=3))
    decoder.model.eval().requires_grad_(False)
    return decoder


def test_a_value_of_the_device_cannot_be_asked_for(far: Decoder) -> None:
    hidden = far.enter(ids(1)).hidden
    assert hidden.is_meta
    for ask in (float, Tensor.tolist, Tensor.cpu, Tensor.numpy):
        with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
            ask(hidden.sum())
    with pytest.raises((NotImplementedError, RuntimeError)):
        hidden[hidden > 0]
    with Waits() as waits:
        ids(1).to("meta")
    assert waits.found == ["_to_copy of [1, 8]"]


def test_scoring_and_losses_never_wait_for_the_device(far: Decoder) -> None:
    paths = some_paths(far)
    with Waits() as waits:
        jobs = question_jobs(paths, REQUESTS, TokenBudget(16))
        assert len(list(run(paths, jobs))) == len(jobs) > 1
        found = score(paths, REQUESTS, batch_tokens=40)
        assert [len(answers.loglikelihood) for answers in found] == [len(REQUESTS)] * 3
        assert len(perplexity(paths, ids(4, 20), batch_tokens=40)) == 3
        assert loss.score_paths(paths, ids(4, 20), batch_tokens=40).losses == [0.0] * 3
        assert Divergences(far, batch_tokens=40)(paths[1:], [ids(4, 20)]) == [0.0] * 2
    assert waits.found == []


def test_calibration_never_waits_for_the_device(far: Decoder) -> None:
    with Waits() as waits:
        assert measure(far, ids(4, 20), batch_tokens=40).n_samples == 4
    assert waits.found == []


def test_a_step_of_generation_waits_for_nothing_but_its_tokens(
    far: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def off(tensor: Tensor) -> Tensor:
        asked.append(len(tensor))
        return torch.full(tensor.shape, 5)

    monkeypatch.setattr(transfer, "off", off)
    prompts = [Prompt(tuple(range(40 + i)), (), 3 + i) for i in range(3)]
    found: list[int] = []
    with Waits() as waits:
        limits = Limits(batch_tokens=60, rows=9, cache_bytes=1 << 30)
        paths, written = some_paths(far), lambda *text: found.append(len(text[2]))
        generate(paths, prompts, tiny_tokenizer(), written=written, limits=limits)
    assert sorted(found) == [3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert asked == [9, 9, 9, 6, 3] and waits.found == []
