"""What cannot be asked of a model, whichever it is, ends a run before anything is pruned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from streamline.errors import AssetError
from streamline.run import pipeline, preparation
from streamline.run.config import RunConfig

CHAT = {"prompting": {"apply_chat_template": True}}


@pytest.fixture(scope="module")
def pair(place: Path) -> list[str]:
    """A model with a chat template, and the same one without."""
    folders = [place / "chat", place / "bare"]
    for folder in folders:
        shutil.copytree(place / "model", folder)
    settings = folders[0] / "tokenizer_config.json"
    template = {"chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | template))
    return list(map(str, folders))


def test_a_later_model_that_cannot_be_asked_ends_the_run_at_once(
    config: Callable[..., RunConfig], pair: list[str], tmp_path: Path
) -> None:
    run = config(tmp_path / "out", models=pair, methods="shortgpt", **CHAT)
    with pytest.raises(AssetError, match=r"/bare: 1 of the question sets .*: piqa: .*template"):
        pipeline.run(run)
    left = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not left & {"results.json", "calibration.safetensors"}


def test_a_later_model_is_asked_all_questions_of_which_a_few_were_tried(
    config: Callable[..., RunConfig],
    pair: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparation, "_TRIED", 2)
    built: list[int | None] = []
    prepare = preparation.prepare

    def counted(*args: object, **options: object) -> object:
        built.append(options["limit"])  # type: ignore[arg-type]
        return prepare(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "prepare", counted)
    records = pipeline.run(config(tmp_path / "out", models=pair, methods="dense"))
    assert [record.tasks["piqa"].n for record in records] == [8, 8]
    assert built == [None, 2, None]
