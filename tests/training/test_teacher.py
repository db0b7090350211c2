"""The teacher runs no deeper, no longer and keeps no more than it must."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.training.activations import ActivationCache
from streamline.training.fit import fit


def test_teacher_stops_at_the_last_tap_and_serves_all_students(decoder, train, validation, student):
    students = [student(decoder, 1, 3), student(decoder, 2, 4), student(decoder, 1, 3, "layer")]
    counts = [0] * 6
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.register_forward_hook(
            lambda *_, index=index: counts.__setitem__(index, counts[index] + 1)
        )
    fit(decoder, students, train, validation, micro_batch=1024)
    # Six training batches; the validation states are kept after the first of three evaluations.
    assert counts == [7, 7, 7, 7, 0, 0]


def test_teacher_stops_where_each_run_of_students_ends(
    decoder, train, validation, student, monkeypatch
):
    """The deepest layer that runs, for a shallow span, a deep one, and both together."""
    deepest: list[int] = []
    run = Decoder.run

    def note(self: Decoder, module: nn.Module, *args: Any) -> Tensor:
        if module in self.layers:
            deepest.append(self.layers.index(module))
        return run(self, module, *args)

    monkeypatch.setattr(Decoder, "run", note)
    for spans, last in (([(0, 2)], 1), ([(1, 4)], 3), ([(0, 2), (1, 4)], 3), ([(4, 6)], 5)):
        deepest.clear()
        fit(decoder, [student(decoder, *span) for span in spans], train, validation)
        assert max(deepest) == last


def test_memory_is_flat_in_the_number_of_samples(decoder, validation, student, tokens):
    """Few hidden states are alive at any time, however many samples there are."""

    def most_alive(n: int) -> int:
        alive: list[weakref.ref[Tensor]] = []
        peak = 0

        def look(_m: nn.Module, _a: Any, out: Tensor) -> None:
            nonlocal peak
            alive.append(weakref.ref(out))
            peak = max(peak, len({id(ref()) for ref in alive if ref() is not None}))

        hooks = [layer.register_forward_hook(look) for layer in decoder.layers]
        students = [student(decoder, 1, 3, epochs=1), student(decoder, 2, 5, epochs=1)]
        fit(decoder, students, tokens(n), validation, micro_batch=32)
        for hook in hooks:
            hook.remove()
        assert len(alive) > n
        return peak

    assert most_alive(8) == most_alive(40) <= 5


def test_activation_cache_spares_the_teacher(
    decoder, tmp_path, train, validation, student, weights, assert_equal
):
    counts = [0]
    decoder.layers[0].self_attn.register_forward_hook(
        lambda *_: counts.__setitem__(0, counts[0] + 1)
    )

    def run(cache: ActivationCache | None) -> tuple[int, list[Tensor], float]:
        counts[0] = 0
        one = student(decoder, 1, 3, "layer", epochs=3)
        (losses,) = fit(decoder, [one], train, validation, cache=cache)
        return counts[0], weights(one), losses.best

    streamed, _, best = run(None)
    cache = ActivationCache(tmp_path / "a", 10**6)
    once, cached, cached_best = run(cache)
    assert (streamed, once) == (10, 4)
    assert cached_best == pytest.approx(best, rel=0.02)
    again, reread, _ = run(cache)
    assert again == 1, "only the validation states are computed again"
    assert_equal(cached, reread)
    small, uncached, _ = run(ActivationCache(tmp_path / "b", 1000))
    assert small == 10
    assert_equal(cached, uncached)
    assert not list((tmp_path / "b").rglob("*.states"))
