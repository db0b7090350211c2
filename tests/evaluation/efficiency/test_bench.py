from __future__ import annotations

import pytest

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path, dense_path
from streamline.evaluation.efficiency import bench as module
from streamline.evaluation.efficiency.bench import Bench, lacks
from streamline.evaluation.efficiency.measure import Beside
from streamline.results.record import Record
from streamline.testing.models import tiny_model


@pytest.fixture(scope="module")
def decoder():
    return Decoder(tiny_model("llama", n_layers=6).eval())


@pytest.fixture
def measured(monkeypatch):
    """Which paths are measured, and in how many seconds; each takes ten."""
    found = []

    def measure(self, path, seconds):
        found.append((path.name, seconds))
        speed = {"batch": 1, "length": 8, "tokens": 4}
        return {"level": self._level, "decode": [speed], "seconds": 10.0}

    monkeypatch.setattr(Beside, "measure", measure)
    return found


def without(decoder, name, *gone):
    nodes = dense_path(decoder).nodes
    return Path(decoder, tuple(n for i, n in enumerate(nodes) if i not in gone), name)


def record(method, efficiency, **changes):
    cell = {"model": "m", "method": method, "sparsity": 0.25, "status": "ok"}
    return Record.build(cell | {"efficiency": efficiency} | changes)


def test_cells_of_one_shape_share_a_measurement_and_say_so(decoder, measured):
    paths = {
        "dense": dense_path(decoder),
        "a@0.3": without(decoder, "a", 1, 2),
        "b@0.3": without(decoder, "b", 3, 5),
        "c@0.5": without(decoder, "c", 1, 2, 3),
        "d": without(decoder, "d"),
    }
    found = Bench(decoder, "quick", [], 5).measure(paths, 0.0)
    assert [name for name, _ in measured] == ["dense", "a", "c"]
    assert found["b@0.3"]["measured_on"] == "a@0.3" and found["d"]["measured_on"] == "dense"
    assert found["b@0.3"]["seconds"] is None and found["a@0.3"]["seconds"] == 10.0
    assert "measured_on" not in found["a@0.3"]
    assert found["b@0.3"]["shape"] == found["a@0.3"]["shape"] != found["c@0.5"]["shape"]


def test_what_a_record_has_is_not_measured_again(decoder, measured):
    path = {"a@0.3": without(decoder, "a", 1)}
    values = Bench(decoder, "quick", [], 1).measure(path, 0.0)["a@0.3"]
    copy = record("b", values | {"measured_on": "a@0.3"})
    bench = Bench(decoder, "quick", [copy, record("a", values), record("c", None)], 1)
    found = bench.measure({"e@0.3": without(decoder, "e", 4)}, 0.0)["e@0.3"]
    assert len(measured) == 1 and found["measured_on"] == "a@0.25"
    again = Bench(decoder, "quick", [record("a", values)], 1)
    same = again.measure({"a@0.25": without(decoder, "a", 1)}, 0.0)["a@0.25"]
    assert same["measured_on"] is None and same["seconds"] is None  # on itself, before
    Bench(decoder, "full", [record("a", values)], 1).measure(path, 0.0)
    assert len(measured) == 2  # nothing that was measured in passing stands in for it


def test_the_seconds_are_shared_among_the_shapes_that_may_come(decoder, measured):
    bench = Bench(decoder, "quick", [], 6)
    paths = {name: without(decoder, name, *range(i)) for i, name in enumerate("abc")}
    bench.measure(paths, 100.0)
    bench.measure({"d": without(decoder, "d", 1, 2, 3)}, 0.0)
    assert [seconds for _, seconds in measured] == [60 / 6, 50 / 5, 40 / 4, 30 / 3]
    bench.measure({"e": without(decoder, "e", 1, 2, 3, 4)}, 1900.0)  # 5 % of 2,000 s are more
    assert measured[-1] == ("e", (100 - 40) / 2)


def test_other_seconds_can_be_set(decoder, measured):
    bench = Bench(decoder, "quick", [], 2, 150)
    bench.measure({"a": without(decoder, "a", 1)}, 100_000.0)
    assert measured == [("a", 75.0)]


def test_full_measuring_takes_as_long_as_it_takes(decoder, measured):
    Bench(decoder, "full", [], 6).measure({"a": without(decoder, "a", 1)}, 0.0)
    assert measured == [("a", None)]


def test_a_model_without_a_speed_of_its_own_is_not_measured(decoder, measured, monkeypatch):
    monkeypatch.setattr(module, "unmeasurable", lambda _: "read layer by layer")
    found = Bench(decoder, "quick", [], 1).measure({"a": without(decoder, "a", 1)}, 0.0)
    assert found == {"a": {"level": "quick", "reason": "read layer by layer"}} and not measured


@pytest.mark.parametrize(
    ("there", "level", "expected"),
    [
        (None, "quick", True),
        (None, "off", False),
        ({"level": "quick"}, "quick", False),
        ({"level": "quick"}, "full", True),
        ({"level": "full"}, "quick", False),
        ({"level": "quick", "reason": "could not be measured"}, "quick", False),
    ],
)
def test_what_a_finished_cell_lacks(there, level, expected):
    assert lacks(record("a", there), level) is expected
    assert not lacks(record("a", there, status="failed", reason="it broke"), level)
