"""Each default has its source in ``baselines/README.md``, and each row there is a default."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

import pytest
from pydantic import BaseModel

from streamline.baselines.streamline_v1 import v1_recipe
from streamline.registry import METHODS, load
from streamline.run.stage_config import CalibrationConfig, PerplexityConfig
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.lora_recipe import PRESETS, LoraSettings
from streamline.training.student import PostTraining, Recipe

SOURCES = {"paper", "run script", "program", "ours"}
README = (files("streamline.baselines") / "README.md").read_text("utf-8")
Defaults = dict[tuple[str, str], str]


def _rows(heading: str) -> Iterator[list[str]]:
    """Cells of the table that begins with some columns."""
    assert README.count(heading) == 1
    for line in README.split(heading)[1].splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def _table(heading: str) -> Defaults:
    found: Defaults = {}
    for names, defaults, source, _ in _rows(heading):
        assert source in SOURCES, f"{names} {defaults}: {source!r} is no source"
        for name in re.findall(r"`([^`]+)`", names):
            for default in re.findall(r"`([^`]+)`", defaults):
                field, _, value = default.partition("=")
                assert (name, field) not in found, f"{name} {field} has two rows"
                found[name, field] = value
    return found


def _fields(name: str, values: Mapping[str, Any]) -> Defaults:
    return {(name, field): repr(value).replace("'", '"') for field, value in values.items()}


def test_every_default_of_a_method_has_a_source():
    expected: Defaults = {}
    for point in entry_points(group=METHODS):
        if point.dist is None or point.dist.name != "streamline-bench":
            continue
        fields = dataclasses.fields(load(METHODS, point.name))
        defaults = {field.name: field.default for field in fields if field.name != "recipe"}
        expected |= _fields(point.name, defaults)
    assert len(expected) > 60
    assert _table("| method | default | from | what the others say, or why |") == expected


def test_every_default_of_the_stages_has_a_source():
    recipe = Recipe().model_dump()
    v1 = v1_recipe().model_dump()
    presets = {name: dataclasses.asdict(preset) for name, preset in PRESETS.items()}
    matched = {k: v for k, v in presets.pop("matched").items() if v != presets["default"][k]}
    expected = _fields("training", recipe)
    expected |= _fields("post_train", PostTraining().model_dump())
    expected |= _fields(
        "v1", {k: v for k, v in v1.items() if v != recipe[k] or k == "learning_rate"}
    )
    expected |= _fields("matched", matched)
    for name, preset in presets.items():
        expected |= _fields(name, preset)
    read: dict[str, type[BaseModel]] = {
        "calibration": CalibrationConfig.__base__,
        "perplexity": PerplexityConfig.__base__,
        "lora": LoraSettings,
        "kd": DistillationSettings,
    }
    for name, block in read.items():
        expected |= _fields(name, dict(block()))  # those too that are shown where they matter
    assert _table("| of | default | from | what the others say, or why |") == expected


def test_a_default_without_its_source_is_found(monkeypatch: pytest.MonkeyPatch):
    row = next(line for line in README.splitlines() if line.startswith("| `linearpatch` | `top_k="))
    monkeypatch.setitem(globals(), "README", README.replace(row + "\n", ""))
    with pytest.raises(AssertionError):
        test_every_default_of_a_method_has_a_source()
    changed = row.replace("| paper |", "| somewhere |")
    monkeypatch.setitem(globals(), "README", README.replace(row, row + "\n" + changed))
    with pytest.raises(AssertionError):
        test_every_default_of_a_method_has_a_source()
