from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from streamline.engine.decoder import Decoder
from streamline.engine.model_state import ModelState
from streamline.engine.paths import Node, Path, dense_path
from streamline.evaluation.efficiency import clock as timing
from streamline.evaluation.efficiency import measure as module
from streamline.evaluation.efficiency.clock import in_turn, quartiles, ratios
from streamline.evaluation.efficiency.measure import BATCHES, Beside, Sizes, unmeasurable
from streamline.methods.sublayers import Sublayers
from streamline.results.blocks.efficiency import WAYS, Efficiency
from streamline.testing.models import tiny_model

CPU = torch.device("cpu")
#: Torch's tracer imports what torch itself says not to use any more.
TRACING = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")


@pytest.fixture(scope="module")
def decoder():
    return Decoder(tiny_model("llama", n_layers=6).eval())


@pytest.fixture(scope="module")
def small():
    return Decoder(tiny_model("llama", n_layers=2).eval())


def shorter(decoder, n=2):
    return Path(decoder, dense_path(decoder).nodes[n:], "short")


def test_a_ratio_is_of_the_two_times_of_one_round():
    times = [[2.0, 8.0, 3.0], [1.0, 2.0, 3.0]]
    assert ratios(times) == {"median": 2.0, "lower": 1.5, "upper": 3.0}
    assert ratios(times[:1]) == {"median": 1.0, "lower": 1.0, "upper": 1.0}
    assert quartiles([4.0, 1.0, 2.0, 3.0]) == {"median": 2.5, "lower": 1.75, "upper": 3.25}


def test_models_take_turns_and_neither_is_always_the_first():
    order = []
    actions = [lambda: order.append("dense"), lambda: order.append("short")]
    times = in_turn(actions, most=3, until=float("inf"), device=CPU)
    assert order == ["dense", "short", "short", "dense", "dense", "short"]
    assert [len(one) for one in times] == [3, 3]


def test_no_round_is_begun_when_time_is_up(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(timing, "clock", lambda: float(next(now)))
    [times] = in_turn([lambda: None], most=50, until=10.0, device=CPU)
    assert times == [1.0] * 4  # three looks at the clock a round, the first of them to go on
    [times] = in_turn([lambda: None], most=50, until=-1.0, device=CPU)
    assert len(times) == 1


def test_a_variant_is_measured_beside_its_dense_model(decoder):
    beside = Beside(decoder, "quick")
    values = Efficiency.model_validate(beside.measure(shorter(decoder), 30.0))
    assert values.reason is None
    assert values.way == "cache" and values.way in WAYS
    assert (values.dtype, values.threads) == ("float32", torch.get_num_threads())
    for phase, tokens in (("prefill", 64), ("decode", 12)):
        for batch in BATCHES:
            speed = values.speed(phase, batch)
            assert (speed.length, speed.tokens, speed.n > 1) == (64, tokens, True)
            assert speed.ratio.median > 0
    assert values.dense.parameters == decoder.n_parameters()
    assert values.parameters == shorter(decoder).n_parameters()
    first, speed = values.time_to_first_token_seconds, values.speed("prefill", 1)
    assert 64 / first.upper <= speed.tokens_per_second.median <= 64 / first.lower
    assert values.checkpoint_bytes < values.peak_memory_bytes < values.dense_peak_memory_bytes


def test_the_cache_is_a_part_of_the_peak(decoder):
    values = Beside(decoder, "quick").measure(shorter(decoder, 0), 30.0)
    tokens = 8 * 64
    least = values["checkpoint_bytes"] + tokens * values["kv_cache_bytes_per_token"]
    assert values["peak_memory_bytes"] > least


def test_the_dense_model_beside_itself_is_timed_once_and_as_fast(decoder):
    values = Beside(decoder, "quick").measure(dense_path(decoder), 30.0)
    for speed in values["prefill"] + values["decode"]:
        assert speed["ratio"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
        assert speed["tokens_per_second"] == speed["dense_tokens_per_second"]
    assert values["peak_memory_bytes"] == values["dense_peak_memory_bytes"]
    assert "note" not in values


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "falcon", "gemma2"])
def test_measuring_leaves_no_trace(family):
    decoder = Decoder(tiny_model(family, n_layers=4).eval())
    state, ids = ModelState(decoder), torch.arange(20)[None]
    with torch.inference_mode():
        before = decoder.model(ids).logits
    path = Sublayers(decoder).path([(0, "attention"), (2, "mlp")])
    assert Beside(decoder, "quick").measure(path, 30.0)["decode"]
    assert not state.changes() and not state.traces() and state.random.same()
    with torch.inference_mode():
        assert torch.equal(decoder.model(ids).logits, before)


class Broken(nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        raise ValueError("no speed for you")


def test_what_cannot_be_measured_says_why(decoder):
    nodes = dense_path(decoder).nodes
    path = Path(decoder, (*nodes[:2], Node(Broken(), 2), *nodes[3:]), "broken")
    values = Efficiency.model_validate(Beside(decoder, "quick").measure(path, 30.0))
    assert values.reason == "could not be measured: ValueError: no speed for you"
    assert values.decode == [] and values.peak_memory_bytes is None


def test_a_batch_that_fails_leaves_the_others(decoder, monkeypatch):
    real = module.prompt

    def prompt(model, batch, length):
        if batch == 8:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, batch, length)

    monkeypatch.setattr(module, "prompt", prompt)
    values = Efficiency.model_validate(Beside(decoder, "quick").measure(shorter(decoder), 30.0))
    assert [speed.batch for speed in values.decode] == [1]
    assert values.reason.startswith("batch 8: ") and "out of memory" in values.reason


def test_what_would_take_too_long_is_left_out(decoder):
    values = Efficiency.model_validate(Beside(decoder, "quick").measure(shorter(decoder), 0.0))
    assert [(speed.batch, speed.n) for speed in values.decode + values.prefill] == [(1, 1)] * 2
    assert [speed.ratio for speed in values.decode + values.prefill] == [None, None]
    assert "time was up before there were 3 pairs" in values.reason
    assert "batch 8 would take" in values.reason and "--efficiency full" in values.reason
    assert values.peak_memory_bytes is None
    assert "time was up before the peak of memory" in values.reason


def test_speeds_that_take_all_the_time_leave_some_for_the_peak_of_memory(decoder, monkeypatch):
    now = [0.0]

    def clock():
        now[0] += 0.25
        return now[0]

    for place in (timing, module):
        monkeypatch.setattr(place, "clock", clock)
    beside = Beside(decoder, "quick")
    beside.sizes = Sizes(length=8, steps=10**6, rounds=10**6)
    values = Efficiency.model_validate(beside.measure(shorter(decoder), 60.0))
    assert now[0] > 60 and [speed.batch for speed in values.decode] == [1, 8]
    assert values.reason is None
    assert values.checkpoint_bytes < values.peak_memory_bytes < values.dense_peak_memory_bytes


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_prompts_fit_into_the_positions_of_a_model(family):
    name = {"opt": "max_position_embeddings", "gpt2": "n_positions"}[family]
    decoder = Decoder(tiny_model(family, n_layers=2, **{name: 32}).eval())
    values = Efficiency.model_validate(Beside(decoder, "full").measure(dense_path(decoder), 30.0))
    assert values.reason is None
    assert 0 < values.speed("decode", 1).length + values.speed("decode", 1).tokens < 32


@pytest.fixture
def captured(monkeypatch):
    """What ``torch.compile`` captures whole is run as it is: compiling takes a minute."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode: real(f, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()
    yield counters["stats"]
    torch._dynamo.reset()


@TRACING
@pytest.mark.parametrize("way", ["compiled", "static-cache", "cache"])
def test_a_cache_of_fixed_size_decodes_the_same_tokens(small, way, captured):
    model = module._ready(dense_path(small))
    ids = module.prompt(model, 3, 9)
    with torch.inference_mode():
        cache, token = module.prefill(model, ids, room=8, way=way)
        step = module.stepper(model, cache, token, way)
        for _ in range(4):
            ids = torch.cat([ids, token], 1)
            step()
        assert token.tolist() == model(ids).logits[:, -1].argmax(-1, keepdim=True).tolist()
    assert captured["unique_graphs"] == (way == "compiled")


@TRACING
@pytest.mark.slow
def test_each_model_is_compiled_for_itself_and_measured(small, monkeypatch, captured):
    monkeypatch.setitem(module.WAYS, ("cpu", "full"), ("compiled", "cache"))
    beside = Beside(small, "full")
    beside.sizes = Sizes(length=8, steps=3, rounds=3)
    values = Efficiency.model_validate(beside.measure(shorter(small, 1), 300.0))
    assert (values.way, values.reason) == ("compiled", None)
    assert {(speed.batch, speed.n) for speed in values.decode} == {(1, 3), (8, 3)}
    assert captured["unique_graphs"] == 4  # two models, two batches


def test_a_way_that_does_not_work_gives_way_to_the_next(decoder, monkeypatch):
    # There are no CUDA graphs on a CPU.
    monkeypatch.setitem(module.WAYS, ("cpu", "full"), ("cuda-graph", "static-cache", "cache"))
    beside = Beside(decoder, "full")
    beside.sizes = Sizes(length=8, steps=3, rounds=3)
    values = beside.measure(dense_path(decoder), 30.0)
    assert values["way"] == "static-cache" and "reason" not in values


def test_models_without_a_speed_of_their_own(decoder):
    assert unmeasurable(decoder) is None
    streamed = SimpleNamespace(layer_order=lambda: None)
    assert "read layer by layer" in unmeasurable(streamed)
    spread = SimpleNamespace(
        layer_order=None, model=SimpleNamespace(hf_device_map={"a": 0, "b": "cpu"})
    )
    assert "kept off the device" in unmeasurable(spread)
