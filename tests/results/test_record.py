from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamline.errors import ConfigError
from streamline.results.record import Record, label
from streamline.results.record_file import FILE_NAME, find, load, upsert

GOLDEN = Path(__file__).parents[1] / "data" / "results_v1.json"


def cell(method="shortgpt", **changes):
    return {
        "model": "m",
        "method": method,
        "sparsity": 0.25,
        "seed": 0,
        "recovery": "none",
        "status": "ok",
        **changes,
    }


def test_the_golden_file_of_schema_1_reads_and_is_written_back_unchanged(tmp_path):
    records = load(GOLDEN)
    assert [record.status for record in records] == ["ok", "ok", "failed", "skipped"]
    for record in records:
        upsert(tmp_path, record)
    written = (tmp_path / "results.json").read_text(encoding="utf-8").splitlines()
    plain = [line for line in written if not line.startswith('  "checksum": ')]
    assert plain == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_records_that_are_not_those_that_were_written_are_refused(tmp_path):
    file = tmp_path / "results.json"
    upsert(tmp_path, cell())
    content = json.loads(file.read_text())
    content["records"][0]["sparsity"] = 0.5
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="results.json is not what was written"):
        load(tmp_path)
    del content["checksum"]
    file.write_text(json.dumps(content))
    assert load(tmp_path)[0].sparsity == 0.5


def test_the_golden_file_has_every_key_that_readers_rely_on():
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert content["schema"] == 1
    pruned = content["records"][1]
    assert set(pruned) >= {
        "model", "method", "sparsity", "seed", "recovery", "status", "reason", "plan",
        "parameters", "tasks", "summary", "cost", "versions",
    }  # fmt: skip
    assert set(pruned["plan"]) >= {"removed_layers", "kept_layers", "replacement"}
    assert set(pruned["parameters"]) >= {"dense", "pruned", "removed_fraction"}
    assert set(pruned["tasks"]["piqa"]) >= {"metric", "value", "stderr", "n", "stability"}
    assert set(pruned["summary"]) >= {"accuracy", "relative_accuracy", "stability", "perplexity"}
    assert set(pruned["cost"]) >= {
        "calibrate_s", "train_s", "eval_s", "peak_memory_bytes", "train_tokens",
    }  # fmt: skip


def test_what_was_not_measured_is_null(tmp_path):
    upsert(tmp_path, cell())
    [raw] = json.loads((tmp_path / "results.json").read_text())["records"]
    assert raw["cost"]["train_s"] is None
    assert raw["parameters"] == {"dense": None, "pruned": None, "removed_fraction": None}
    assert raw["summary"]["accuracy"] is None
    assert raw["plan"] is None


def test_a_second_record_of_a_cell_takes_the_first_ones_place(tmp_path):
    for method in ("a", "b"):
        upsert(tmp_path, cell(method, status="failed", reason="no memory"))
    upsert(tmp_path, cell("a"))
    assert [(r.method, r.status) for r in load(tmp_path)] == [("a", "ok"), ("b", "failed")]


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"sparsity": 0.250001}, {"seed": 1}, {"recovery": "lora"}]
)
def test_another_cell_is_another_record(tmp_path, change):
    upsert(tmp_path, cell())
    upsert(tmp_path, cell(**change))
    records = load(tmp_path)
    assert len(records) == 2
    assert find(records, *records[1].identity) is records[1]
    assert find(records, "m", "shortgpt", 0.5) is None


def test_extra_keys_survive(tmp_path):
    task = {"metric": "acc", "value": 0.5, "agreement": 0.9, "counts": {"lost": 3}}
    upsert(tmp_path, cell(tasks={"piqa": task}, notes={"flag": "far off"}, anything=[1]))
    [record] = load(tmp_path)
    assert record.tasks["piqa"].model_extra == {"agreement": 0.9, "counts": {"lost": 3}}
    assert record.to_json()["anything"] == [1]


def test_nan_and_infinity_become_null_with_a_reason(tmp_path):
    task = {"metric": "acc", "value": np.float32("nan"), "stderr": float("inf"), "n": np.int64(7)}
    upsert(tmp_path, cell(tasks={"piqa": task}))
    [record] = load(tmp_path)
    assert (record.tasks["piqa"].value, record.tasks["piqa"].stderr) == (None, None)
    assert record.tasks["piqa"].n == 7
    assert record.notes["not_finite"] == ["tasks.piqa.value: nan", "tasks.piqa.stderr: inf"]
    assert "not finite, written as null: tasks.piqa.value: nan" in record.reason
    assert "NaN" not in (tmp_path / "results.json").read_text()


def test_a_malformed_record_is_refused_by_key(tmp_path):
    with pytest.raises(ConfigError, match=r"status: Input should be 'ok'"):
        upsert(tmp_path, cell(status="done"))
    with pytest.raises(ConfigError, match=r"tasks\.piqa\.metric: Field required"):
        upsert(tmp_path, cell(tasks={"piqa": {"value": 1.0}}))
    assert not (tmp_path / "results.json").exists()


def test_unreadable_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"No results\.json in"):
        load(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": 2, "records": []}')
    with pytest.raises(ConfigError, match="has schema 2; this version reads schema 1"):
        load(tmp_path)
    (tmp_path / "results.json").write_text('{"schema": 1, "rec')
    with pytest.raises(ConfigError, match="is not JSON"):
        upsert(tmp_path, cell())


WORKER = """
import sys
from streamline.results.record_file import upsert
for seed in range(5):
    upsert(sys.argv[1], {"model": "m", "method": sys.argv[2], "sparsity": 0.25, "seed": seed,
                         "status": "ok"})
"""


def test_several_processes_lose_no_record(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), f"worker-{number}"])
        for number in range(3)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    assert len({record.identity for record in load(tmp_path)}) == 15


def test_label_is_short():
    assert label(Record.build(cell())) == "shortgpt@0.25"
    assert label(Record.build(cell(seed=2, recovery="lora"))) == "shortgpt@0.25 +lora seed 2"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("tasks", "piqa", "value"), 1.7, "tasks.piqa"),
        (("tasks", "piqa", "value"), -0.1, "tasks.piqa"),
        (("tasks", "piqa", "stderr"), -0.1, "tasks.piqa.stderr"),
        (("tasks", "piqa", "n"), -3, "tasks.piqa.n"),
        (("tasks", "piqa", "stability"), 1.2, "tasks.piqa.stability"),
        (("summary", "accuracy"), 40.0, "summary.accuracy"),
        (("summary", "relative_accuracy"), -1.0, "summary.relative_accuracy"),
        (("summary", "perplexity"), {"wikitext2": -5.0}, "summary.perplexity.wikitext2"),
        (("parameters", "removed_fraction"), 1.5, "parameters.removed_fraction"),
        (("cost", "eval_s"), -1.0, "cost.eval_s"),
        (("sparsity",), 25, "sparsity"),
    ],
)
def test_values_out_of_their_range_are_refused_with_file_and_key(tmp_path, place, value, words):
    task = {"metric": "acc", "value": 0.5}
    item = {"model": "m", "method": "dense", "sparsity": 0.0, "status": "ok", "summary": {}}
    item |= {"tasks": {"piqa": task}, "parameters": {}, "cost": {}}
    inner = item
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / FILE_NAME).write_text(json.dumps({"schema": 1, "records": [item]}))
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        load(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(error.value)


def test_a_cell_that_is_there_twice_is_refused(tmp_path):
    item = {"model": "m", "method": "dense", "sparsity": 0.0, "status": "ok"}
    (tmp_path / FILE_NAME).write_text(json.dumps({"schema": 1, "records": [item, item]}))
    with pytest.raises(ConfigError, match=r"the cell m, dense, 0.0, 0, none is there twice"):
        load(tmp_path)
