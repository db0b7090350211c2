from __future__ import annotations

import re

import pytest
import torch

from streamline.baselines.blockpruner import BlockPruner
from streamline.baselines.given_layers import GivenLayers
from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.errors import ConfigError
from streamline.method import Method
from streamline.registry import build_method
from streamline.testing import check_method
from streamline.testing.models import tiny_config
from streamline.testing.subject import Subject

NOTHING = Calibration(torch.zeros(7, 7), torch.zeros(7, 7), 16, 2)


@pytest.mark.parametrize(
    ("spec", "removed"),
    [
        ("given-layers+remove=2", [2]),
        ("given-layers+remove=2-4", [2, 3, 4]),
        ("given-layers+remove=[1,3-4]", [1, 3, 4]),
        ("given-layers+remove=[4, 1]", [1, 4]),
    ],
)
def test_the_layers_of_the_list_go(spec: str, removed: list[int]) -> None:
    subject = Subject(build_method(spec), "llama")
    pruned = subject.method.prune(subject.decoder, NOTHING, 0.25, subject.batches, 0)
    assert pruned.plan.removed_layers == removed
    assert pruned.plan.replacement is None


def test_sublayers_of_the_list_go() -> None:
    subject = Subject(build_method("given-layers+remove=[2.attention, 4.mlp, 1]"), "opt")
    plan = subject.method.prune(subject.decoder, NOTHING, 0.25, subject.batches, 0).plan
    assert plan.removed_layers == [1]
    kinds = {step.layer: step.kind for step in plan.steps if not step.dense}
    assert kinds == {2: "no-attention", 4: "no-mlp"}


def test_both_sublayers_of_a_layer_are_the_layer() -> None:
    whole, halves = GivenLayers(remove=3), GivenLayers(remove=("3.mlp", "3.attention"))
    subject = Subject(whole, "llama")
    found = [
        method.prune(subject.decoder, NOTHING, 0.25, subject.batches, 0).plan
        for method in (whole, halves)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("other", [BlockPruner(n_samples=2, length=16)])
def test_the_choice_of_another_method_is_reproduced(other: Method) -> None:
    subject = Subject(other, "llama")
    theirs = subject.pruned
    units = tuple(f"{index}.{kind}" for index, kind in theirs.notes["order"])
    assert units
    mine = GivenLayers(remove=units).prune(subject.decoder, NOTHING, 0.25, subject.batches, 0)
    assert mine.plan == theirs.plan
    assert torch.equal(
        subject.logits(mine.path(subject.decoder)), subject.logits(theirs.path(subject.decoder))
    )


@pytest.mark.parametrize("remove", [(1, 2), ("2.attention", 4)])
def test_a_list_keeps_the_contract(remove: tuple[int | str, ...]) -> None:
    outcomes = list(check_method(GivenLayers(remove=remove), ["llama"]))
    assert [outcome for outcome in outcomes if outcome.status != "passed"] == []


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        ("x", "'x' in remove names no layers"),
        ("-1", "'-1' in remove names no layers"),
        (-1, "-1 in remove names no layers"),
        (True, "remove=True of given-layers is not accepted"),
        ("5-3", "ends before it starts"),
        ("3.norm", "names no layers"),
        ((3, "3.mlp"), "the mlp of layer 3 twice"),
        (("1-3", 2), "layer 2 twice"),
    ],
)
def test_a_list_that_cannot_be_read_is_refused(
    remove: int | str | tuple[int | str, ...], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        GivenLayers(remove=remove)


@pytest.mark.parametrize(
    ("remove", "words"),
    [((), "needs its list"), (6, "layers of .* are 0 to 5"), ("0-5", "every layer")],
)
def test_a_list_that_does_not_fit_the_model_is_unsupported(
    remove: int | str | tuple[int | str, ...], words: str
) -> None:
    decoder = Decoder.from_config(tiny_config("llama"))
    reason = GivenLayers(remove=remove).unsupported(decoder)
    assert reason is not None
    assert re.search(words, reason)
