from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamline.baselines.shortened_llama import ShortenedLlamaTaylor
from streamline.baselines.shortgpt import ShortGPT
from streamline.calibration import measure
from streamline.distributed import sums
from streamline.distributed.team import Shard, within
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.run.config import RunConfig, build_config
from streamline.run.planning import estimate as sizing
from streamline.run.planning import fitting
from streamline.run.planning.fitting import fitted, memory_plan, told
from streamline.run.planning.plan import MemoryPlan
from streamline.run.planning.rehearsal import Rehearsal
from streamline.run.planning.sizes import Sizes
from streamline.testing.models import tiny_model, tiny_tokenizer
from streamline.training.distillation import trainees
from streamline.training.schedule import training_bytes

GIB = 2**30


@pytest.fixture(autouse=True)
def nothing_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def planned(model: str, memory: str, **changes: Any) -> tuple[RunConfig, MemoryPlan]:
    values = {
        "models": model, "methods": "all", "dtype": "bfloat16", "device": "cuda",
        "memory": memory, "dry_run": True, **changes,
    }  # fmt: skip
    config, _ = fitted(build_config(values))
    return config, memory_plan(config.for_model(model), model)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("model", ["llama2-7b", "llama2-13b", "llama3-8b", "opt-6.7b"])
def test_every_cell_of_the_plain_command_fits_or_is_told_what_does(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[Sizes] = []  # once for all memories, which it does not go by

    def once(*given: Any, **more: Any) -> Sizes:
        rehearsed[:] = rehearsed or [Sizes(*given, **more)]
        return rehearsed[0]

    monkeypatch.setattr(fitting, "Sizes", once)
    for memory in ("24GiB", "48GiB", "80GiB"):
        config, plan = planned(model, memory)
        streams = (model, memory) == ("llama2-13b", "24GiB")
        assert config.for_model(model).stream == streams
        assert plan.memory is not None and plan.usable is not None
        assert (0.0 if streams else 0.2) * plan.memory < plan.peak <= plan.usable
        if memory == "80GiB":
            assert plan.refused == {}
        if plan.refused:
            most = max(refusal.device for refusal in plan.refused.values())
            assert planned(model, f"{most}GiB")[1].refused == {}


def test_a_cell_that_does_not_fit_has_its_number_and_the_others_stay() -> None:
    _, plan = planned("llama2-7b", "22GiB", methods="llm-streamline-ffn,slicegpt")
    (label,) = plan.refused
    assert label == "slicegpt 0.25"
    reason = str(plan.refused[label])
    assert "23." in reason and "22.0 GiB are planned" in reason
    assert [row.stage for row in plan.rows] == ["calibrate", "train", "evaluate", "speed"]
    assert told(plan)[0].startswith("memory planned: 17.")
    _, plan = planned("llama2-7b", "22GiB", methods="llm-streamline-ffn", efficiency="off")
    assert [row.stage for row in plan.rows] == ["calibrate", "train", "evaluate"]


@pytest.mark.slow
def test_networks_that_do_not_fit_together_are_trained_in_waves() -> None:
    methods = ",".join(f"llm-streamline-layer+init={init}" for init in ("first", "last", "mean"))
    _, roomy = planned("llama2-7b", "48GiB", methods=methods)
    _, tight = planned("llama2-7b", "24GiB", methods=methods)
    assert (roomy.waves, roomy.students) == (1, None)
    assert tight.waves > 1 and tight.students is not None and tight.refused == {}
    assert "trained in" in tight.decisions()[0]


def test_what_recovers_it_trains_a_network_no_second_time(tiny: str) -> None:
    run = {"methods": "llm-streamline-ffn", **TINY}
    whole = {kind: planned(tiny, "1GiB", recovery=kind, **run)[1] for kind in ("none", "none,lora")}
    names = [[row.method for row in plan.rows if row.stage == "train"] for plan in whole.values()]
    assert names == [["1 network"], ["1 network"]]
    peak = max(row.peak for row in whole["none"].rows)
    _, tight = planned(tiny, f"{int(1.06 * peak / 1024)}KiB", recovery="none,lora", **run)
    assert list(tight.refused) == ["llm-streamline-ffn 0.3 +lora"]
    assert [(row.stage, row.resident) for row in tight.rows] == [
        (row.stage, row.resident) for row in whole["none"].rows
    ], "what is refused holds nothing"


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("1.5gib", 3 * 2**29)]
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert build_config({"models": "opt-1.3b", "methods": "dense", "memory": text}).memory == size


@pytest.mark.parametrize("text", ["24", "GiB", "0GiB", "much"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="such as 24GiB"):
        build_config({"models": "opt-1.3b", "methods": "dense", "memory": text})


def test_a_run_takes_no_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "device_memory", lambda _: 8 * GIB)
    values = {"models": "opt-1.3b", "methods": "dense", "memory": "24GiB"}
    assert sizing.run_memory(build_config(values)) == 8 * GIB
    assert sizing.run_memory(build_config(values | {"memory": "4GiB"})) == 4 * GIB
    assert sizing.run_memory(build_config(values | {"dry_run": True})) == 24 * GIB


@pytest.mark.slow
def test_distillation_of_all_weights_holds_each_of_them_five_times_in_float32() -> None:
    pruned = 6_738_415_616 - 8 * 202_383_360
    run = {"methods": "llm-streamline-none", "recovery": "kd"}
    adapters, whole = (
        next(row.added for row in plan.rows if row.stage == "fine-tune")
        for _, plan in (
            planned("llama2-7b", "400GiB", **run),
            planned("llama2-7b", "400GiB", **run, kd={"trainees": "all"}),
        )
    )
    assert whole - adapters == 5 * 4 * pruned


@pytest.mark.slow
def test_processes_that_share_a_model_hold_parts_of_what_one_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = {"methods": "llm-streamline-none", "recovery": "kd", "kd": {"trainees": "all"}}
    alone = planned("llama2-7b", "80GiB", **run)[1]
    [refusal] = alone.refused.values()
    assert 1 < refusal.processes <= 8 and f"{refusal.processes} processes on" in str(refusal)
    monkeypatch.setenv("WORLD_SIZE", str(refusal.processes))
    assert planned("llama2-7b", "80GiB", **run)[1].refused == {}


@pytest.mark.slow
def test_frozen_layers_are_in_parts_where_training_leaves_them_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = {"methods": "llm-streamline-none", "recovery": "lora", "efficiency": "off"}
    label = "llm-streamline-none 0.25 +lora"
    alone = planned("llama2-7b", "32GiB", **run)[1]
    assert "LoRA fine-tuning needs 38." in str(alone.refused[label]) and not alone.in_parts
    monkeypatch.setenv("WORLD_SIZE", "8")
    together = planned("llama2-7b", "32GiB", **run)[1]
    assert together.refused == {} and together.in_parts == {label}
    assert together.peak <= 0.95 * 32 * GIB and "each of 8 processes" in together.decisions()[0]


@pytest.mark.slow
def test_several_processes_train_and_recover_what_no_device_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = {"methods": "llm-streamline-ffn", "recovery": "lora", "efficiency": "off"}
    [refusal] = planned("llama2-70b", "80GiB", **run)[1].refused.values()
    assert refusal.processes == 4 and not refusal.streamed
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert planned("llama2-70b", "80GiB", **run)[1].refused == {}
    monkeypatch.setenv("WORLD_SIZE", "8")
    config, plan = planned("llama2-70b", "80GiB", **run)
    assert config.for_model("llama2-70b").stream and plan.refused == {}
    assert plan.in_parts == {"llm-streamline-ffn 0.25 +lora"}
    weights = 2 * 68_976_648_192
    for row in plan.rows:
        if row.stage in ("train", "fine-tune"):
            assert weights / 8 < row.peak <= 0.95 * 80 * GIB < weights


@pytest.mark.parametrize("family", ["gemma2", "olmoe"])
def test_a_family_is_planned_as_it_can_be_run_and_torch_says_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    said: list[object] = []
    handler = SimpleNamespace(level=0, handle=said.append)
    monkeypatch.setattr(logging.getLogger("torch._subclasses.fake_tensor"), "handlers", [handler])
    place = {"dtype": "float32", "device": "cpu", "data": "packaged", "sparsities": 0.3}
    _, plan = planned(str(tmp_path / "model"), "1GiB", methods="llm-streamline-ffn", **place)
    added = {row.stage: row.added for row in plan.rows}
    head = 2_048 * model.config.hidden_size * 4
    assert min(added[stage] for stage in ("train", "evaluate")) > head
    assert said == []


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A tiny model on disk."""
    tiny_model("llama", n_layers=6).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


TINY = {"dtype": "float32", "device": "cpu", "data": "packaged", "sparsities": 0.3}
TINY |= {"calibration": {"n_samples": 16}}


@pytest.mark.parametrize("length", [512, 4096])
def test_what_calibrating_holds_grows_with_no_sample(length: int) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=2, max_position_embeddings=length))
    rehearsal = Rehearsal(decoder, torch.float32)
    tokens = rehearsal.tokens(5 * 4096 // length, length)
    whole = rehearsal.peak(lambda few: measure(few, tokens))
    rehearsed = rehearsal.peak(lambda few: ShortGPT().rehearse(decoder, few, tokens, 0.3))
    assert rehearsed == whole and rehearsed is not None


def test_refitting_is_planned_and_methods_without_it_are_as_others(tiny: str) -> None:
    """What is rehearsed ends where a value is asked for: refitting comes before that."""
    methods = "shortgpt,sleb,llm-streamline-none,sleb+refit=true,llm-streamline-none+refit=true"
    _, plan = planned(tiny, "1GiB", methods=methods, **TINY)
    shared, own = [row for row in plan.rows if row.stage == "calibrate"]
    assert (shared.method, own.method) == ("3 methods", "2 methods")
    copied = 4 * sum(p.numel() for p in tiny_model("llama", n_layers=6).model.layers.parameters())
    assert own.added > copied + 3 * 16 * 512 * 32 * 4  # layers, and three states of each token


def test_texts_that_are_generated_hold_their_keys_and_values(tiny: str) -> None:
    _, reading = planned(tiny, "1GiB", methods="shortgpt", tasks="piqa", **TINY)
    _, writing = planned(tiny, "1GiB", methods="shortgpt", tasks="piqa,streamline_gsm8k", **TINY)
    stages = {row.stage: row for row in writing.rows}
    assert [row.stage for row in reading.rows] == [s for s in stages if s != "generate"]
    token = 2 * 6 * 2 * 8 * 4  # keys and values of 6 layers with 2 heads of 8, float32
    prompts = 32 * 1.6 * 1024  # behind where two models part each has its own
    modules = tiny_model("llama", n_layers=6).modules()
    linear = 4 * sum(m.weight.numel() for m in modules if isinstance(m, torch.nn.Linear))
    assert stages["generate"].added == linear + round(token * (64 * 512 + prompts))
    plan = planned(tiny, "1GiB", methods="shortgpt", tasks="streamline_gsm8k", stream=True, **TINY)
    assert "generate" not in [row.stage for row in plan[1].rows]


def test_own_answers_hold_their_keys_and_values_and_what_is_drawn_from(tiny: str) -> None:
    training = {"n_tokens": 2_048, "length": 64, "batch_tokens": 512}
    run = {"methods": "shortgpt", "recovery": "kd", "training": training, **TINY}
    _, plain = planned(tiny, "1GiB", **run)
    _, own = planned(tiny, "1GiB", kd={"own_answers": 8}, **run)
    stages = {row.stage: row for row in own.rows}
    without = dict.fromkeys(row.stage for row in plain.rows)
    assert list(without) == [stage for stage in stages if stage != "write"]
    token = 2 * 6 * 2 * 8 * 4  # keys and values of 6 layers with 2 heads of 8, float32
    vocabulary = tiny_model("llama", n_layers=6).config.vocab_size
    assert stages["write"].added == 32 * (64 * token + 20 * vocabulary)


def test_distillation_holds_the_teachers_states_and_logits_too(tiny: str) -> None:
    run = {"methods": "llm-streamline-ffn", **TINY}
    added = {
        kind: next(row.added for row in plan.rows if row.stage == "fine-tune")
        for kind in ("lora", "kd")
        for _, plan in [planned(tiny, "1GiB", recovery=kind, **run)]
    }
    assert added["kd"] > added["lora"] + 4_096 * 32 * 4
    _, own = planned(tiny, "1GiB", recovery="kd", kd={"trainees": "replacement"}, **run)
    (row,) = [row for row in own.rows if row.stage == "fine-tune"]
    assert row.added - added["kd"] == 5 * 4 * (8 * 32 * 32 + 5 * 32)


@pytest.mark.parametrize(("spare", "wanted"), [(1.0, 2), (1.5, 2), (1.99, 2), (2.01, 1), (9, 1)])
def test_a_plan_divides_weights_where_training_does(
    spare: float, wanted: int, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rehearsal, "peak", lambda *_, **__: 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    dense = tiny_model("llama", n_layers=6)
    n = sum(p.numel() for p in dense.parameters())
    pruned = n - 2 * sum(p.numel() for p in dense.model.layers[0].parameters())
    memory = round((4 * n + spare * training_bytes(pruned)) / 1024)
    run = {"methods": "shortgpt", **TINY, "device": "cuda", "recovery": "kd"}
    _, plan = planned(tiny, f"{memory}KiB", kd={"trainees": "all"}, **run)
    assert plan.divided == wanted
    device = torch.device("cuda")
    student: Any = SimpleNamespace(device=device, n_parameters=lambda: pruned)
    monkeypatch.setattr(trainees, "room", lambda _: 1024 * memory - 4 * n)
    monkeypatch.setattr(trainees, "shared", lambda work: work())
    monkeypatch.setattr(sums, "gpus", object())
    with within(Shard(0, 2)):
        assert trainees.divided_among(student, None) is (wanted > 1)


@pytest.mark.parametrize(("kind", "named"), [("lora", "LoRA fine-tuning"), ("kd", "distillation")])
def test_a_refusal_names_the_stage(kind: str, named: str, tiny: str) -> None:
    _, roomy = planned(tiny, "1GiB", methods="shortgpt", recovery=kind, **TINY)
    peaks = {row.stage: row.peak for row in roomy.rows}
    memory = str(int(0.98 * peaks["fine-tune"] / 1024)) + "KiB"
    _, tight = planned(tiny, memory, methods="shortgpt", recovery=kind, **TINY)
    assert any(reason.work == named for reason in tight.refused.values())


def test_what_cannot_be_planned_is_named_with_its_reason(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no shapes for this")

    monkeypatch.setattr(ShortenedLlamaTaylor, "rehearse", fails)
    run = {"methods": "shortgpt,shortened-llama-taylor", **TINY}
    _, plan = planned(tiny, "1GiB", **run)
    assert [row.method for row in plan.rows if row.stage == "calibrate"] == ["shortgpt"]
    (line,) = plan.decisions()
    assert line.startswith("not planned: shortened-llama-taylor: ")
    assert "no shapes for this" in line


def test_a_model_that_is_spread_says_where_its_layers_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "device_memory", lambda _: 64 * GIB)
    monkeypatch.setattr(Rehearsal, "peak", lambda *_, **__: 0)
    spread = {"device_map": "auto", "methods": "shortgpt", "plan_for": "rtx4090"}
    config, _ = fitted(
        build_config({"models": "llama2-13b", "dry_run": True, "dtype": "float16", **spread})
    )
    assert sizing.run_memory(config) == int(23.5 * GIB) + 64 * GIB
    plan = memory_plan(config.for_model("llama2-13b"), "llama2-13b")
    (line,) = plan.decisions()
    assert line.startswith("3") and "of 40 layers lie on the accelerator" in line
    assert not config.for_model("llama2-13b").stream
