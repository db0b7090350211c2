"""What a cell that memory does not hold is told: the flag, or the memory, with which it fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import compute_module_sizes, get_balanced_memory, infer_auto_device_map

from streamline.cli.screen.dry_run import show_plan
from streamline.engine.decoder import Decoder
from streamline.run.cell import expand
from streamline.run.config import build_config
from streamline.run.deciding.decide import decided
from streamline.run.planning.fitting import fitted, memory_plan
from streamline.run.planning.memory import plan_memory
from streamline.run.planning.plan import MARGIN, MemoryPlan
from streamline.run.planning.rehearsal import Rehearsal
from streamline.run.planning.rows import rows_of
from streamline.run.planning.sizes import Sizes
from streamline.run.planning.work import spread
from streamline.testing.models import tiny_model, tiny_tokenizer

WIDE = {"hidden_size": 256, "intermediate_size": 512, "n_layers": 8}
DEEP = {**WIDE, "n_layers": 40}
SMALL = {
    "dtype": "float32", "device": "cpu", "data": "packaged", "sparsities": 0.3, "dry_run": True,
    "efficiency": "off", "calibration": {"n_samples": 4, "length": 16},
    "training": {"n_tokens": 256, "batch_tokens": 64, "length": 16},
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


@pytest.fixture
def wide(tmp_path: Path) -> str:
    """A model whose weights are most of what its run holds."""
    return saved(tmp_path / "model", WIDE)


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of many layers, each a small part of it; what is rehearsed is left out."""
    monkeypatch.setattr(Rehearsal, "peak", lambda *_, **__: 0)
    return saved(tmp_path / "model", DEEP)


def saved(folder: Path, shape: dict[str, int]) -> str:
    tiny_model("llama", **shape).save_pretrained(folder)  # type: ignore[arg-type]
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def given(model: str, methods: str, **changes: Any) -> Any:
    return build_config({"models": model, "methods": methods, **SMALL, **changes})


def planned(model: str, methods: str, size: float, **changes: Any) -> MemoryPlan:
    """The plan of a run for some bytes."""
    config, _ = fitted(given(model, methods, memory=int(size), **changes))
    return memory_plan(config.for_model(model), model)


def needs(model: str, methods: str, *, stream: bool) -> dict[str, tuple[int, str]]:
    config = decided(given(model, methods, stream=stream)).config.for_model(model)
    decoder, known, rows = rows_of(model, config, expand(config, model))
    sizes = Sizes(config, known, decoder, accelerator=False)
    return plan_memory(config, rows, sizes, memory=None).needs


def test_a_cell_that_streaming_makes_fit_is_told_so_and_it_does(wide: str) -> None:
    methods, label = "shortgpt,slicegpt", "shortgpt 0.3"
    resident, streamed = (needs(wide, methods, stream=s) for s in (False, True))
    assert list(streamed) == [label], "the other needs all layers"
    size = 0.9 * resident[label][0] / (1 - MARGIN)
    assert size > 1.5 * streamed[label][0] / (1 - MARGIN)
    plan = planned(wide, methods, size)
    assert set(plan.refused) == set(resident)
    assert "are planned: --stream makes it fit, and a device of " in str(plan.refused[label])
    assert not plan.refused["slicegpt 0.3"].streamed
    device = plan.refused["slicegpt 0.3"].device
    said = f"planned: a device of {device:.1f} GiB does (--memory {device:.1f}GiB plans for one)"
    assert str(plan.refused["slicegpt 0.3"]).endswith(said)
    assert label not in planned(wide, methods, size, stream=True).refused


@pytest.mark.parametrize(
    ("methods", "recovery"),
    [
        ("shortgpt,slicegpt,llm-streamline-ffn,llm-pruner", "none"),
        ("shortgpt,slicegpt", "none,lora,kd"),
    ],
)
def test_the_memory_that_is_named_does(wide: str, methods: str, recovery: str) -> None:
    full = {"recovery": recovery}
    weights = 4 * sum(p.numel() for p in tiny_model("llama", **WIDE).parameters())
    for size in (0.7 * weights, 1.3 * weights):  # read layer by layer, and whole
        plan = planned(wide, methods, size, **full)
        assert plan.refused
        most = max(refusal.device for refusal in plan.refused.values())
        assert planned(wide, methods, most * 2**30, **full).refused == {}


def test_cells_that_need_all_layers_of_a_model_too_large_are_refused_for_memory(
    wide: str, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = "shortgpt,slicegpt,llm-streamline-ffn"
    weights = 4 * sum(p.numel() for p in tiny_model("llama", **WIDE).parameters())
    plan = planned(wide, methods, 0.7 * weights)
    assert set(plan.refused) == {"slicegpt 0.3", "llm-streamline-ffn 0.3"}
    for refusal in plan.refused.values():
        assert str(refusal).startswith("having all layers at once needs ")
    show_plan(given(wide, methods, memory=int(0.7 * weights)))
    shown = capsys.readouterr().out
    assert "without --stream" not in " ".join(shown.split())
    table = shown.partition("\n\n")[0]
    assert table.count("skipped") == 2


def test_who_asks_for_streaming_where_memory_holds_all_is_told_to_leave_it(wide: str) -> None:
    config = given(wide, "llm-streamline-ffn", stream=True, memory=2**30)
    assert memory_plan(config, wide).refused == {}
    (row,) = [row for row in fitted(config)[1].rows if row.reason]
    assert "run without --stream" in str(row.reason)


STARTED = "llm-streamline-ffn+init=linear+share=0,replaceme,linearpatch"


def test_starts_from_layers_and_states_are_planned_for_layers_read_one_at_a_time(wide: str) -> None:
    methods = f"{STARTED},llm-streamline-layer+share=0"
    weights = 4 * sum(p.numel() for p in tiny_model("llama", **WIDE).parameters())
    plan = planned(wide, methods, 0.8 * weights)
    assert plan.refused == {} and not plan.apart
    (row,) = [row for row in plan.rows if row.stage == "prune"]
    assert row.method == "sums for 3 models"
    assert row.resident < 0.4 * weights and row.added > 3 * 8 * WIDE["hidden_size"] ** 2
    layer = 4 * sum(p.numel() for p in tiny_model("llama", **WIDE).model.layers[0].parameters())
    kept = [plan.rows[-1].resident for plan in (plan, planned(wide, STARTED, 0.8 * weights))]
    assert kept[0] - kept[1] == layer, "the copy stays until it has answered"


def test_sums_that_do_not_fit_together_are_made_one_by_one(wide: str) -> None:
    methods, more = STARTED, {"sparsities": (0.2, 0.3, 0.4, 0.5), "stream": True}
    roomy = planned(wide, methods, 2**30, **more)
    (together,) = [row for row in roomy.rows if row.stage == "prune"]
    tight = planned(wide, methods, 0.9 * together.peak / (1 - MARGIN), **more)
    assert not roomy.apart and tight.apart and tight.refused == {}
    (one,) = [row for row in tight.rows if row.stage == "prune"]
    assert one.peak < 0.9 * together.peak
    assert "each method sums over the model's states by itself" in tight.decisions()


#: GPUs that this machine need not have.
GPUS = {"device": "cuda", "batch_tokens": 512}


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 4), (0.9, 2)])
def test_of_a_model_read_layer_by_layer_the_processes_that_train_it_are_named(
    share: float, wanted: int, deep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods, label = "slicegpt,llm-streamline-ffn", "llm-streamline-ffn 0.3"
    size = share * 4 * sum(p.numel() for p in tiny_model("llama", **DEEP).parameters())
    refused = planned(deep, methods, size, **GPUS).refused
    found = {label: refusal.processes for label, refusal in refused.items()}
    assert found == {"slicegpt 0.3": 0, label: wanted}
    assert f"planned: {wanted} processes on as many such devices" in str(refused[label])
    for n in (wanted, wanted // 2):
        monkeypatch.setenv("WORLD_SIZE", str(n))
        config, estimate = fitted(given(deep, label.split()[0], memory=int(size), **GPUS))
        refused = memory_plan(config.for_model(deep), deep).refused
        (reason,) = [row.reason for row in estimate.rows if row.cell.label == label]
        assert (reason is None and not refused) == (n == wanted)


@pytest.mark.parametrize("share", [0.5, 1.1])  # read layer by layer, and whole
def test_a_cell_that_a_machine_holds_with_its_layers_spread_is_told_so(
    deep: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = share * 4 * sum(p.numel() for p in tiny_model("llama", **DEEP).parameters())

    def ways(n_devices: int, methods: str = "llm-streamline-ffn", **more: Any) -> dict[str, int]:
        monkeypatch.setattr("torch.cuda.device_count", lambda: n_devices)
        refused = planned(deep, methods, size, **GPUS | more).refused
        told = {label: "--device-map auto" in str(refusal) for label, refusal in refused.items()}
        found = {label: refusal.devices for label, refusal in refused.items()}
        assert told == {label: n > 0 for label, n in found.items()}
        return found

    both = ways(4, "slicegpt,llm-streamline-ffn")
    assert both == {"slicegpt 0.3": 0, "llm-streamline-ffn 0.3": 4}
    assert ways(1) == ways(4, plan_for="h200") == {"llm-streamline-ffn 0.3": 0}
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not any(ways(4).values()), "several processes each hold one"


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("n_devices", [2, 3, 5])
def test_layers_are_planned_where_accelerate_spreads_them(family: str, n_devices: int) -> None:
    model = tiny_model(family, n_layers=20, hidden_size=128, intermediate_size=512)
    whole = 4 * sum(p.numel() for p in model.parameters())
    kinds, room = list(model._no_split_modules), dict.fromkeys(range(n_devices), whole)
    room = get_balanced_memory(model, room, kinds)
    sizes = compute_module_sizes(model)
    there = dict.fromkeys(range(n_devices), 0)
    for name, device in infer_auto_device_map(model, room, kinds).items():
        there[device] += sizes[name]
    assert sum(there.values()) >= whole, "nothing lies elsewhere"
    found = spread(Decoder(model), torch.float32, n_devices)
    assert max(there.values()) <= found < 1.3 * max(there.values())
