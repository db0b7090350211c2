from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from misbehaving import Fields

from streamline.baselines.blockpruner import BlockPruner
from streamline.baselines.given_layers import GivenLayers
from streamline.baselines.random_layers import RandomLayers
from streamline.baselines.replaceme import ReplaceMe
from streamline.baselines.sleb import SLEB
from streamline.baselines.slicegpt import SliceGPT
from streamline.cli.main import main
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError, UnsupportedModelError
from streamline.registry import METHODS, available, build_method, load_method
from streamline.testing.models import tiny_config

NONSENSE = [
    "sleb+n_samples=-1",
    "sleb+n_samples=0",
    "sleb+n_samples=1e20",
    "sleb+length=1",
    "sleb+keep_first=-1",
    "sleb+search_share=1.1",
    "sleb+search_share=.nan",
    "sleb+n_samples=true",
    "blockpruner+n_samples=-1",
    "blockpruner+width=0",
    "blockpruner+search_share=1.0",
    "blockpruner+search_share=.inf",
    "shortened-llama-ppl+n_samples=0",
    "shortened-llama-taylor+length=0",
    "shortened-llama-magnitude+keep_last=-2",
    "laco+layers_per_merge=0",
    "laco+interval=0",
    "laco+lowest=-1",
    "laco+highest=0",
    "laco+n_samples=-3",
    "laco+length=0",
    "laco+rule=mine",
    "linearpatch+rotation=left",
    "linearpatch+distill_epochs=-1",
    "linearpatch+top_k=1",
    "linearpatch+step_tokens=0",
    "linearpatch+learning_rate=.nan",
    "llm-drop+target=both",
    "llm-pruner+start=-0.1",
    "llm-pruner+stop=1.5",
    "llm-pruner+stop=-1",
    "llm-pruner+n_samples=0",
    "llm-pruner+length=1",
    "llm-pruner+importance=none",
    "replaceme+ridge=-1",
    "replaceme+ridge=.nan",
    "replaceme+ridge=.inf",
    "replaceme+epochs=0",
    "replaceme+learning_rate=0",
    "replaceme+learning_rate=.inf",
    "replaceme+batch=0",
    "random-layers+draw=-1",
    "random-layers+draw=99999999999999999999",
    "slicegpt+round_interval=0",
    "slicegpt+round_interval=-8",
    "slicegpt+max_slicing=2",
    "slicegpt+max_slicing=0",
    "slicegpt+max_slicing=.nan",
    "slicegpt+orientation=up",
    "smaller-dense+model=''",
    "llm-streamline-none+runner_up=500",
    "llm-streamline-none+runner_up=-1",
    "llm-streamline-ffn+runner_up=500",
    "llm-streamline-ffn+init=foo",
    "llm-streamline-ffn+init=mean",
    "llm-streamline-ffn+share=-0.1",
    "llm-streamline-ffn+share=.nan",
    "llm-streamline-swiglu+init=linear",
    "llm-streamline-layer+init=linear",
    "llm-streamline-layer+residual=true",
    "streamline-v1-mlp+init=first",
    "streamline-v1-layer+residual=true",
    "streamline-v1-layer-shared+init=foo",
]


@pytest.mark.parametrize("spec", NONSENSE)
def test_a_value_that_makes_no_sense_is_refused_before_anything_is_looked_at(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--models", "smollm2-135m-instruct", "--methods", spec, "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--out", str(tmp_path)])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.out == ""
    assert spec.partition("+")[2].partition("=")[0] in shown.err or "cannot start" in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (SLEB, {"n_samples": -1}),
        (SLEB, {"n_samples": True}),
        (SLEB, {"length": "many"}),
        (BlockPruner, {"search_share": 1.0}),
        (SliceGPT, {"max_slicing": 2.0}),
        (ReplaceMe, {"ridge": float("nan")}),
        (RandomLayers, {"draw": 2**64}),
    ],
)
def test_a_method_made_in_python_is_held_to_the_same(cls: type, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(values))}=.* is not accepted: "):
        cls(**values)


def test_values_of_a_near_type_become_the_fields_own() -> None:
    assert repr(ReplaceMe(ridge=1)) == repr(ReplaceMe(ridge=1.0))
    assert repr(SLEB(n_samples=np.int64(3))) == repr(SLEB(n_samples=3))  # type: ignore[arg-type]
    assert GivenLayers(remove=["1-2", 4]).remove == ("1-2", 4)  # type: ignore[arg-type]


def test_fields_of_kinds_that_no_check_knows_are_left_alone() -> None:
    table = {"a": [1]}
    made = Fields(anything=print, table=table)
    assert (made.anything, made.sloppy, made.table) == (print, None, table)


@pytest.mark.parametrize("name", sorted(available(METHODS)))
def test_every_installed_method_says_what_its_fields_accept(name: str) -> None:
    cls = load_method(name)
    method = cls()
    assert dataclasses.replace(method) == method
    numbers = [
        field.name
        for field in dataclasses.fields(cls)
        if type(getattr(method, field.name)) in (int, float)
    ]
    for field in numbers:
        with pytest.raises(ConfigError, match=field):
            cls(**{field: float("nan")})
        with pytest.raises(ConfigError, match=field):
            cls(**{field: -(2**40)})


@pytest.mark.parametrize("name", ["llm-streamline-none", "llm-streamline-ffn"])
def test_a_runner_up_that_a_model_does_not_have_is_known_from_its_config(name: str) -> None:
    meta = Decoder.from_config(tiny_config("llama", n_layers=6))
    with pytest.raises(
        UnsupportedModelError, match=r"runner_up=6 is too large: there are \d spans"
    ):
        build_method(f"{name}+runner_up=6").size(meta, 0.25)
