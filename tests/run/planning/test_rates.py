"""Rates of devices: measured here, and by the figures of cards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from streamline.baselines.sleb import SLEB
from streamline.engine.budget import statistics_flops, weights
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.run.config import build_config
from streamline.run.planning import rates as rates_module
from streamline.run.planning.amounts import Work
from streamline.run.planning.cards import CARDS
from streamline.run.planning.estimate import run_memory
from streamline.run.planning.rates import Rates, measured, of_card, on_accelerator, why_unplanned
from streamline.sources.models import load_config

REPORTS = Path(__file__).parents[3] / "reports"
PLAIN = {"models": "opt-1.3b", "methods": "dense", "dry_run": True}


def test_a_rate_is_what_a_product_reaches() -> None:
    rates = max(
        (measured.__wrapped__("cpu", "float32", 256, 512) for _ in range(3)), key=lambda r: r.matrix
    )
    left, right = torch.randn(512, 256), torch.randn(512, 256)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        left @ right.T
        best = min(best, time.perf_counter() - start)
    seen = 2 * 512 * 256 * 512 / best
    assert seen / 3 < rates.matrix < seen * 3
    assert rates.memory > 1e8 and not rates.accelerator


def test_measuring_takes_no_five_seconds() -> None:
    start = time.perf_counter()
    measured.__wrapped__("cpu", "float32", 4096, 11008)
    assert time.perf_counter() - start < 5


def test_work_takes_longer_the_more_there_is() -> None:
    rates = Rates("here", 1e11, 1e10, False, "")
    alone = [
        Work("evaluate", "m", flops=1e12),
        Work("evaluate", "m", moved=1e12),
        Work("evaluate", "m", algebra=1e11),
        Work("evaluate", "m", fetched=1e11),
        Work("evaluate", "m", launches=10**6),
    ]
    assert all(rates.seconds(work) > 5 for work in alone)
    both = Work("evaluate", "m", flops=1e12, moved=1e12)
    assert rates.seconds(both) == pytest.approx(sum(map(rates.seconds, alone[:2])))


def test_several_processes_share_what_is_divided_and_nothing_else() -> None:
    alone, four = (Rates("here", 1e11, 1e10, False, "", n) for n in (1, 4))
    shared = [Work(stage, "m", flops=1e12) for stage in ("calibrate", "prune", "train", "evaluate")]
    shared.append(Work("evaluate", "m", moved=1e12, launches=10**6))
    whole = [
        Work("prune", "m", algebra=1e11),
        Work("prune", "m", flops=1e12, divided=False),
        Work("train", "m", moved=1e12),
        Work("evaluate", "m", fetched=1e11),
    ]
    for work in shared:
        assert four.seconds(work) == pytest.approx(alone.seconds(work) / 4), work
    for work in whole:
        assert four.seconds(work) == alone.seconds(work), work


def test_a_launchers_processes_are_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    decoder: Any = None
    rates = rates_module.rates_for(build_config(PLAIN | {"plan_for": "h200"}), decoder)
    assert rates is not None and (rates.processes, rates.title) == (8, "8 processes, each on H200")


def test_cards_are_in_the_order_of_their_figures() -> None:
    names = ("t4", "v100-32gb", "a6000", "a100-40gb", "h100-80gb")
    speeds = [of_card(CARDS[name], "float16").matrix for name in names]
    assert speeds == sorted(speeds)
    for name, card in CARDS.items():
        found = of_card(card, "float16")
        assert found.matrix > of_card(card, "float32").matrix, name
        assert found.accelerator and card.gib < 200, name


def test_the_committed_record_of_a_gpu_is_planned_within_a_factor_of_two() -> None:
    record = json.loads((REPORTS / "gpu" / "gpu.json").read_text())
    took = {
        row["name"]: row["races"][0]["wall_s"]["ours"] for row in record["rows"] if row["races"]
    }
    assert record["facts"]["device"] == "NVIDIA H200"
    decoder = Decoder.from_config(load_config("llama2-7b"))
    layer, head = weights(decoder, decoder.layers[:1]), 49_152 * 4096
    body, ffn, tokens = 32 * layer, 8 * 4096**2, 49_152
    rounds = SLEB(search_share=0.25).effort(decoder, 0.25, (10, 128))
    searching = rounds.calibrate - statistics_flops(decoder, 1280)
    training = 2 * body * (tokens + 4096) + 2 * (ffn + layer) * (6 * tokens + 8192)
    steps = 48 * 5
    works = {
        "dense": Work("evaluate", "", 2 * 36_958 * body + 36_958 * head),
        "sleb": Work("prune", "", searching),
        "students": Work("train", "", training),
        "generation": Work("evaluate", "", moved=steps * 28 * layer * 2, launches=steps * 28),
    }
    rates = of_card(CARDS["h200"], "bfloat16")
    assert rates.matrix == pytest.approx(791e12, rel=0.02)
    for name, work in works.items():
        assert took[name] / 2 < rates.seconds(work) < took[name] * 2, name


def test_a_format_without_units_is_said() -> None:
    card = CARDS["v100-32gb"]
    assert card.rate("bfloat16") == card.rate("float32")
    assert "--dtype float16" in str(card.remark("bfloat16"))
    assert card.remark("float16") is None


def test_a_card_is_planned_with_its_memory_and_as_an_accelerator() -> None:
    config = build_config(PLAIN | {"plan_for": "A100-80GB"})
    assert config.plan_for == "a100-80gb"
    assert run_memory(config) == CARDS["a100-80gb"].memory
    assert on_accelerator(config) and why_unplanned(config) is None
    assert run_memory(build_config(PLAIN | {"plan_for": "t4", "memory": "8GiB"})) == 8 * 2**30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan_for": "abacus"}, "no card that is known here; choose h200"),
        ({"plan_for": "t4", "dry_run": False}, "give dry_run too"),
        ({"plan_for": "t4", "device": "cpu"}, "leave device out"),
    ],
)
def test_what_cannot_be_planned_for_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(PLAIN | changes)


def test_other_machines_and_devices_that_are_not_here_are_not_guessed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rates_module.torch.cuda, "is_available", lambda: False)
    for changes in ({"device": "cuda"}, {"executor": "ray"}):
        config = build_config(PLAIN | changes)
        assert "--plan-for" in str(why_unplanned(config))
        decoder: Any = None
        assert rates_module.rates_for(config, decoder) is None


def test_measuring_leaves_the_random_state_as_it_was() -> None:
    before = torch.get_rng_state()
    measured("cpu", "float32", 40, 24)
    assert torch.equal(torch.get_rng_state(), before)
