from __future__ import annotations

import json
from pathlib import Path

import pytest
from fabricated_run import made_efficiency

from streamline.errors import ConfigError
from streamline.results.blocks.efficiency import WAYS, Efficiency
from streamline.results.record import Record
from streamline.results.record_file import load, upsert

GOLDEN = Path(__file__).parents[1] / "data" / "results_v1.json"


def record(**changes):
    cell = {"model": "m", "method": "shortgpt", "sparsity": 0.25, "status": "ok"}
    return Record.build(cell | changes)


def test_the_golden_file_has_the_speed_of_what_was_done():
    dense, pruned, *others = load(GOLDEN)
    assert dense.efficiency.speed("decode", 8).ratio.median == 1
    speed = pruned.efficiency.speed("decode", 1)
    assert speed.tokens_per_second.median > speed.dense_tokens_per_second.median
    assert pruned.efficiency.parameters < pruned.efficiency.dense.parameters
    assert pruned.efficiency.way in WAYS
    assert [other.efficiency for other in others] == [None, None]


def test_a_record_is_read_as_it_was_written(tmp_path):
    upsert(tmp_path, record(efficiency=made_efficiency(0.25, measured_on="ffn@0.25")))
    [found] = load(tmp_path)
    assert found.efficiency == Efficiency.model_validate(
        made_efficiency(0.25, measured_on="ffn@0.25")
    )
    upsert(tmp_path, record())
    [raw] = json.loads((tmp_path / "results.json").read_text())["records"]
    assert raw["efficiency"] is None


def test_what_could_not_be_measured_is_null_with_its_reason():
    found = record(efficiency={"parameters": 7, "reason": "the model is streamed"}).efficiency
    assert (found.parameters, found.checkpoint_bytes, found.way) == (7, None, None)
    assert found.decode == [] and found.speed("decode", 1) is None


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"parameters": -1}, r"efficiency\.parameters: .*greater than or equal to 0"),
        ({"level": "half"}, r"efficiency\.level: Input should be 'quick' or 'full'"),
        ({"decode": [{"batch": 0, "length": 8, "tokens": 1}]}, r"efficiency\.decode\.0\.batch"),
        (
            {"time_to_first_token_seconds": {"lower": 2.0, "median": 1.0, "upper": 3.0}},
            r"time_to_first_token_seconds: .*2\.0, 1\.0, 3\.0 are not in order",
        ),
    ],
)
def test_what_no_measurement_gives_is_refused(changes, where):
    with pytest.raises(ConfigError, match=where):
        record(efficiency=made_efficiency(**changes))


def test_the_cost_says_how_many_cells_shared_the_work():
    cost = {"train_s": 3.0, "train_with": 1, "train_steps": 20, "train_flops": 1e12}
    assert record(cost=cost).cost.train_with == 1
    with pytest.raises(ConfigError, match=r"cost\.train_with: .*greater than or equal to 1"):
        record(cost=cost | {"train_with": 0})
