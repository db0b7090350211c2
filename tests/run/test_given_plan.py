"""``--plan``: what another run, a checkpoint or a file decided is run as it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from streamline.cli.main import main
from streamline.errors import ConfigError, PlanError
from streamline.plan import Plan, Span, Step
from streamline.results.record_file import load
from streamline.results.select import read_plan
from streamline.run import pipeline
from streamline.run.config import RunConfig


def _call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as info:
        main([str(one) for one in arguments])
    return int(info.value.code or 0)


@pytest.fixture(scope="module")
def done(config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which shortgpt removed layers and llm-drop sublayers."""
    out = tmp_path_factory.mktemp("done") / "run"
    records = pipeline.run(config(out, methods="shortgpt,llm-drop,llm-streamline-ffn"))
    assert {record.status for record in records} == {"ok"}
    return out


@pytest.mark.parametrize("method", ["shortgpt", "llm-drop"])
def test_a_cell_is_reproduced_from_its_plan(
    done: Path, place: Path, tmp_path: Path, method: str
) -> None:
    suite = tmp_path / "again.yaml"
    settings = json.loads((done / "run.json").read_text(encoding="utf-8"))
    kept = ("tasks", "data_dir", "calibration", "perplexity", "device")
    values = {name: settings[name] for name in kept if name in settings}
    suite.write_text(json.dumps({"title": "again", "models": str(place / "model"), **values}))
    out = tmp_path / "run"
    plan = ("--plan", f"{done}:{method}@0.3")
    assert _call("--suite", suite, *plan, "--sparsities", "0.3", "--out", out) == 0
    (theirs,) = [record for record in load(done) if record.method == method]
    (mine,) = [record for record in load(out) if record.method.startswith("given-layers")]
    for field in ("plan", "parameters", "tasks", "summary"):
        assert getattr(mine, field) == getattr(theirs, field), field


def test_a_checkpoint_gives_its_plan_on(done: Path, place: Path, tmp_path: Path) -> None:
    files = [path for path in (done / "plans").iterdir() if "shortgpt" in path.name]
    out = tmp_path / "checkpoint"
    model = place / "model"
    text = ("--calibration", place / "text.jsonl", "--calibration-samples", "4")
    assert _call("prune", model, "--plan", files[0], "--out", out, *text, "--no-verify") == 0
    assert read_plan(str(out)) == read_plan(str(files[0])) == read_plan(f"{done}:shortgpt@0.3")


@pytest.mark.parametrize(
    "what", ["none", "two", "text", "latin", "deep", "nothing", "no-plan", "replaced"]
)
def test_what_is_no_plan_is_refused(
    done: Path, place: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.json").write_text("{", encoding="utf-8")
    (tmp_path / "latin.json").write_bytes(b'{"steps": "\xe9"}')
    (tmp_path / "deep.json").write_bytes(b"[" * 100_000)
    (tmp_path / "nothing.json").write_text(json.dumps(Plan.dense(6).to_json()), encoding="utf-8")
    given, words = {
        "none": ([], "prune needs one method"),
        "two": (["--plan", done, "--plan", done], "one plan"),
        "text": (["--plan", tmp_path / "text.json"], "is not JSON"),
        "latin": (["--plan", tmp_path / "latin.json"], "is not UTF-8 text"),
        "deep": (["--plan", tmp_path / "deep.json"], "nested too deeply"),
        "nothing": (["--plan", tmp_path / "nothing.json"], "removes no layer"),
        "no-plan": (["--plan", place / "model"], "holds no plan"),
        "replaced": (["--plan", f"{done}:llm-streamline-ffn@0.3"], "run the method that made it"),
    }[what]
    assert _call("prune", place / "model", *given, "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_removals_are_ranges_and_sublayers() -> None:
    assert Plan.drop(9, [1, 2, 3, 5, 8]).removals == ["1-3", "5", "8"]
    assert Plan.dense(3).removals == []
    halves = Plan(4, (Step(0), Step(1, "no-mlp"), Step(3, "no-attention")))
    assert halves.removals == ["1.mlp", "3.attention", "2"]
    with pytest.raises(PlanError, match="runs ffn at layer 1"):
        _ = Plan.replace(4, Span(1, 3), "ffn").removals
    with pytest.raises(ConfigError, match="holds no plan"):
        read_plan("nowhere")
