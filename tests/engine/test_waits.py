"""What a program that runs batch after batch asks an accelerator for, which then stands still.

Seen without one in two ways: on a device without data every question is an error, and on a CPU the
operations that would read a value, or find out how many there are, are counted for each batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from asking import asked
from some_paths import some_paths
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamline.baselines._taylor import _Scores, absolute_rows, each_gradient, taylor_scores
from streamline.baselines.llm_drop import sublayer_cosines
from streamline.baselines.replaceme import FoldFit
from streamline.baselines.shortened_llama import layer_weights
from streamline.baselines.two_ssp import channel_scores
from streamline.calibration import measure
from streamline.engine import transfer
from streamline.engine.decoder import Decoder
from streamline.engine.forward import run
from streamline.engine.head import summed_loss
from streamline.engine.transfer import Later
from streamline.evaluation.generation.engine import Limits, generate
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.scoring.perplexity import perplexity
from streamline.evaluation.scoring.score import Request, question_jobs, score
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.methods import loss
from streamline.methods.divergence import Divergences
from streamline.methods.linear_map import LinearFit, linear_maps
from streamline.methods.loss_search import LossSearch
from streamline.methods.teacher_fits import fitted
from streamline.plan import Span
from streamline.testing.models import tiny_config, tiny_model, tiny_tokenizer

LENGTH = 20


def requests(n: int) -> list[Request]:
    """Two options of a question each, of 20 tokens together and more."""
    return [
        Request("t", i // 2, i % 2, tuple(range(3, 19 + i // 2)), tuple(range(40, 43 + i)))
        for i in range(n)
    ]


def ids(n: int, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 250, (n, length), generator=torch.Generator().manual_seed(1))


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
        ids(1, 8).to("meta")
    assert waits.found == ["_to_copy of [1, 8]"]


def test_scoring_and_losses_never_wait_for_the_device(far: Decoder) -> None:
    paths = some_paths(far)
    with Waits() as waits:
        jobs = question_jobs(paths, requests(8), TokenBudget(16))
        assert len(list(run(paths, jobs))) == len(jobs) > 1
        found = score(paths, requests(8), batch_tokens=40)
        assert [len(answers.loglikelihood) for answers in found] == [8] * 3
        assert len(perplexity(paths, ids(4), batch_tokens=40)) == 3
        assert loss.score_paths(paths, ids(4), batch_tokens=40).losses == [0.0] * 3
        assert Divergences(far, batch_tokens=40)(paths[1:], [ids(4)]) == [0.0] * 2
    assert waits.found == []


def test_calibration_never_waits_for_the_device(far: Decoder) -> None:
    with Waits() as waits:
        assert measure(far, ids(4), batch_tokens=40).n_samples == 4
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


def test_importance_is_read_when_a_pass_is_over(far: Decoder) -> None:
    with Waits() as waits:
        assert sublayer_cosines(far, ids(4), batch_tokens=40).shape == (3, 2)
        assert len(channel_scores(far, ids(4), batch_tokens=40)) == 3
        scores = _Scores(far)
        each_gradient(far, ids(4), scores.parameters, lambda w, g: scores.add(w, w * g))
        rows: list[Tensor] = []
        weights = layer_weights(far, 0)
        each_gradient(far, ids(4), weights, lambda w, g: rows.append(absolute_rows(w * g)))
    assert waits.found == [] and len(rows) == len(weights) == 9


def test_sums_for_maps_stay_on_the_device(far: Decoder) -> None:
    span = Span(1, 3)
    with Waits() as waits:
        fits = fitted(far, [LinearFit(span, weighted=True), FoldFit(span)], ids(4))
    assert [fit.moments.xtx.is_meta for fit in fits[:1]] == [fits[1].gram.is_meta] == [True]
    assert waits.found == []


def test_losses_of_some_tokens_ask_for_no_number_of_them(far: Decoder) -> None:
    tokens, scored = ids(2), torch.arange(LENGTH).expand(2, -1) > 5
    with Waits() as waits:
        assert summed_loss(far, far.enter(tokens).hidden, tokens, scored).is_meta
    assert waits.found == []


def search(decoder: Decoder, tokens: Tensor) -> None:
    paths = some_paths(decoder)
    LossSearch(paths, tokens, batch_tokens=2 * LENGTH).least(paths)


def scored(decoder: Decoder, tokens: Tensor) -> None:
    jobs = [
        job
        for _ in range(len(tokens) // 2)
        for job in question_jobs(some_paths(decoder), requests(2), TokenBudget(256))
    ]
    list(run(some_paths(decoder), jobs))


#: Work on a model and tokens [N, T], two sequences a batch: how often a batch asks at once, and how
#: often for what was copied beside the next one.
WORK: dict[str, tuple[Callable[[Decoder, Tensor], object], int, int]] = {
    "scoring": (scored, 0, 1),
    "perplexity": (lambda d, t: perplexity(some_paths(d), t, batch_tokens=2 * LENGTH), 0, 1),
    "losses": (lambda d, t: loss.score_paths(some_paths(d), t, batch_tokens=2 * LENGTH), 0, 1),
    "divergences": (
        lambda d, t: Divergences(d, batch_tokens=2 * LENGTH)(some_paths(d), [t]),
        0,
        1,
    ),
    "search": (search, 0, 0),
    "calibration": (lambda d, t: measure(d, t, batch_tokens=2 * LENGTH), 0, 1),
    "sublayers": (lambda d, t: sublayer_cosines(d, t, batch_tokens=2 * LENGTH), 0, 1),
    "channels": (lambda d, t: channel_scores(d, t, batch_tokens=2 * LENGTH), 0, 1),
    "linear maps": (
        lambda d, t: linear_maps(d, [Span(0, 2)], t, weighted=True, micro_batch=2 * LENGTH),
        0,
        0,
    ),
    "gradients": (
        lambda d, t: [taylor_scores(d, part, "param_first") for part in torch.split(t, 2)],
        0,
        0,
    ),
}


@pytest.mark.parametrize("name", WORK)
def test_a_batch_asks_for_its_answers_alone_and_once(name: str) -> None:
    work, now, late = WORK[name]
    decoder, found = Decoder(tiny_model("llama", n_layers=3)), []
    for batches in (2, 5):
        with asked() as questions:
            work(decoder, ids(2 * batches))
        found.append((len(questions.now), questions.late))
    few, more = found
    assert [b - a for a, b in zip(few, more, strict=True)] == [3 * now, 3 * late]


def test_questions_are_counted() -> None:
    values = torch.arange(3.0)
    with asked() as questions:
        assert float(values.sum()) == 3.0 and bool(values[1] > 0) and values[2].item() == 2.0
        assert len(values.nonzero()) == 2 and torch.equal(values, values)
        later = Later([values], lambda tensors: float(tensors[0].sum()))
        assert later.value() == 3.0
    assert questions.now == [
        *["_local_scalar_dense.default"] * 3, "nonzero.default", "equal.default",
    ]  # fmt: skip
    assert questions.late == 1
