"""``--stream`` through the runner: the records of a run in memory; what cannot be is skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streamline.checkpoints import checkpoint
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.progress import Silent
from streamline.results.record import Record
from streamline.run.config import RunConfig
from streamline.run.model_run import run_model
from streamline.run.pipeline import prune_to_checkpoint
from streamline.run.planning.estimate import plan_run
from streamline.sources.weights import WeightSource
from streamline.testing.models import tiny_model, tiny_tokenizer

METHODS = "shortgpt,sleb,llm-streamline-ffn"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model in shards, a text and questions in their original form."""
    folder = tmp_path_factory.mktemp("place")
    for family, name in (("llama", "model"), ("opt", "opt")):
        model = tiny_model(family, n_layers=5)
        model.save_pretrained(folder / name, max_shard_size="20KB")
        tiny_tokenizer().save_pretrained(folder / name)
    lines = [json.dumps({"text": f"the {i} foxes jump over {i * 7} dogs"}) for i in range(200)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    rows = [
        {"goal": f"keep {i} dry", "sol1": f"put {i} in a box", "sol2": "leave it", "label": i % 2}
        for i in range(6)
    ]
    (folder / "data" / "piqa").mkdir(parents=True)
    (folder / "data" / "piqa" / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def config(config: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """The small run with what can be streamed, and what cannot."""
    return partial(config, methods=METHODS, batch_tokens=256)


@pytest.fixture
def worked(place: Path, config: Callable[..., RunConfig]) -> Callable[..., dict[str, Record]]:
    """``worked(out, **changes)``: the records of a run by method."""

    def run(out: Path, family: str = "llama", **changes: Any) -> dict[str, Record]:
        model = str(place / {"llama": "model"}.get(family, family))
        records = run_model(config(out, models=model, **changes), model, Silent())
        return {record.method: record for record in records}

    return run


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[WeightSource]:
    """Every source of weights that is opened."""
    found: list[WeightSource] = []
    opened = WeightSource.__init__

    def remembered(self: WeightSource, folder: Path) -> None:
        opened(self, folder)
        found.append(self)

    monkeypatch.setattr(WeightSource, "__init__", remembered)
    return found


def test_records_are_those_of_a_run_in_memory(tmp_path, sources, worked):
    wanted = worked(tmp_path / "whole", methods="shortgpt,sleb")
    found = worked(tmp_path / "streamed", stream=True)
    for method in ("dense", "shortgpt", "sleb"):
        assert found[method].status == "ok"
        assert found[method].key == wanted[method].key
        assert found[method].plan == wanted[method].plan
        assert found[method].parameters == wanted[method].parameters
        assert found[method].tasks == wanted[method].tasks
        assert found[method].summary == wanted[method].summary
    assert found["llm-streamline-ffn"].status == "skipped"
    assert "llm-streamline-ffn trains through a model" in str(found["llm-streamline-ffn"].reason)
    (source,) = [source for source in sources if source.bytes_read]  # not for its headers
    # one pass each for the statistics, for SLEB's own, and for the whole evaluation;
    # the rest are the rounds of its search
    assert source.reads["lm_head.weight"] == source.reads["model.layers.0.mlp.up_proj.weight"] - 2


def test_starts_from_layers_and_states_give_the_records_of_a_run_in_memory(
    tmp_path, sources, worked
):
    networks = "llm-streamline-layer,streamline-v1-layer-shared+init=mean"
    networks += ",llm-streamline-ffn+init=linear,llm-streamline-ffn+init=weighted"
    methods = networks.replace(",", "+share=0,") + "+share=0,linearpatch,replaceme"
    for family in ("llama", "opt"):
        wanted, found = (
            worked(tmp_path / f"{family}-{stream}", family, methods=methods, stream=stream)
            for stream in (False, True)
        )
        assert len(found) == 7 and list(found) == list(wanted)
        for method, record in found.items():
            there = wanted[method]
            assert (record.status, record.key) == ("ok", there.key), record.reason
            assert record.plan == there.plan and record.parameters == there.parameters
            assert record.tasks == there.tasks and record.summary == there.summary
    streamed = [source for source in sources if source.bytes_read]  # not for its headers
    for source, name in zip(streamed, ("model.", "model.decoder."), strict=True):
        passes = source.reads[f"{name}embed_tokens.weight"]
        assert passes == 3, "for the statistics, for the sums of all cells, and for evaluation"


def test_a_pass_serves_every_question_and_text(place, tmp_path, sources, config):
    settings, model = config(tmp_path, methods="dense", stream=True), str(place / "model")
    run_model(settings, model, Silent())
    (source,) = [source for source in sources if source.bytes_read]  # not for its headers
    assert set(source.reads) == set(source) and set(source.reads.values()) == {1}
    assert run_model(settings, model, Silent())[0].tasks["piqa"].n == 6
    read = [source for source in sources if source.bytes_read]
    assert len(read) == 1  # nothing is read for what is done


def test_recovery_is_skipped_with_its_reason(tmp_path, worked):
    found = worked(tmp_path, methods="shortgpt", recovery="lora", stream=True)
    assert found["dense"].status == "ok"
    assert found["shortgpt"].status == "skipped"
    assert "lora trains through a model" in str(found["shortgpt"].reason)


STARTED = (
    "shortgpt", "llm-streamline-layer+init=mean+share=0", "llm-streamline-ffn+init=linear+share=0",
    "linearpatch", "replaceme",
)  # fmt: skip


@pytest.mark.parametrize("method", STARTED)
def test_a_checkpoint_is_pruned_without_the_whole_model(place, tmp_path, config, method):
    for name, stream in (("whole", False), ("streamed", True)):
        prune_to_checkpoint(
            str(place / "model"),
            method=method,
            sparsity=0.3,
            out=tmp_path / name,
            config=config(tmp_path / "run", methods=method, stream=stream),
            verify=False,
        )
    (_, _, whole), (_, _, found) = (checkpoint.load(tmp_path / n) for n in ("whole", "streamed"))
    assert found.plan == whole.plan
    with WeightSource(tmp_path / "whole") as left, WeightSource(tmp_path / "streamed") as right:
        assert set(left) == set(right)
        assert all(left.read(name).equal(right.read(name)) for name in left)


def test_a_checkpoint_of_what_is_trained_is_refused(place, tmp_path, config):
    with pytest.raises(UnsupportedModelError, match="llm-streamline-ffn trains through a model"):
        prune_to_checkpoint(
            str(place / "model"),
            method="llm-streamline-ffn",
            sparsity=0.3,
            out=tmp_path / "refused",
            config=config(tmp_path / "run", stream=True),
        )


def test_a_plan_counts_two_layers_and_names_the_skipped(tmp_path, config):
    whole = plan_run(config(tmp_path, methods="shortgpt"))
    found = plan_run(config(tmp_path, stream=True))
    layer = 4 * (whole.rows[0].dense - 2 * 320 * 32 - 32) // 5
    assert found.memory_bytes == 4 * 32 + max(2 * layer, layer + 4 * 320 * 32)
    assert found.memory_bytes < whole.memory_bytes
    reasons = {row.cell.method: row.reason for row in found.rows}
    assert reasons["shortgpt"] is None and "trains" in str(reasons["llm-streamline-ffn"])


def test_streaming_excludes_a_device_map(tmp_path, config):
    with pytest.raises(ConfigError, match="give one of the two"):
        config(tmp_path, stream=True, device_map="auto")
