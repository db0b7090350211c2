from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from misbehaving import FAULTS
from torch import Tensor, nn

from streamline.calibration import Calibration
from streamline.cli.main import main
from streamline.engine.decoder import Decoder
from streamline.method import DepthMethod, Method, Pruned, Size
from streamline.plan import Plan, Span
from streamline.registry import METHODS, available, load_method
from streamline.testing import CHECKS, CONFORMANCE_FAMILIES, check_method

#: Layers dropped, layers replaced by a trained network, and a model of its own.
QUICK = ("shortgpt", "llm-streamline-ffn", "slicegpt")


@pytest.mark.parametrize("family", CONFORMANCE_FAMILIES)
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(available(METHODS))
    ],
)
def test_every_installed_method_keeps_the_contract(name: str, family: str) -> None:
    outcomes = list(check_method(load_method(name)(), [family]))
    assert [outcome for outcome in outcomes if outcome.status == "failed"] == []
    refused = [outcome for outcome in outcomes if outcome.status == "refused"]
    assert refused or len(outcomes) == len(CHECKS) + 2


@dataclass(frozen=True, kw_only=True)
class _Good(DepthMethod):
    name: ClassVar[str] = "good"
    paper: ClassVar[str] = "a test"

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        return Plan.drop(calibration.n_layers, range(1, 1 + n_remove))


class _Leaves(_Good):
    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        decoder.layers[0].register_forward_hook(lambda *_: None)
        return super().calibrate(decoder, batches)


class _Draws(_Good):
    def prune(self, decoder: Decoder, *rest: Any) -> Pruned:
        torch.rand(1)
        return super().prune(decoder, *rest)


class _Spoils(_Good):
    def prune(self, decoder: Decoder, *rest: Any) -> Pruned:
        with torch.no_grad():
            next(decoder.layers[0].parameters()).add_(1.0)
        return super().prune(decoder, *rest)


class _Always(_Good):
    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        return Pruned(self.select(calibration, 2))


class _TooMany(_Good):
    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        return Plan.drop(calibration.n_layers, range(n_remove + 1))


class _Boasts(_Good):
    def size(self, decoder: Decoder, sparsity: float) -> Size:
        return Size(decoder.n_parameters(), 1, None)


class _Random(_Good):
    """A plan that is another one each time, and leaves torch's random state alone."""

    calls: ClassVar[itertools.count[int]] = itertools.count()

    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        first = next(self.calls)
        order = [(first + i) % calibration.n_layers for i in range(n_remove)]
        return Plan.drop(calibration.n_layers, order)


class _Untrained(_Good):
    trains: ClassVar[bool] = True


class _Unstated(_Good):
    returns_model: ClassVar[bool] = None  # type: ignore[assignment]


class _Blind(_Good):
    def unsupported(self, decoder: Decoder) -> str | None:
        return "no"


class _Raises(_Good):
    def select(self, calibration: Calibration, n_remove: int) -> Plan:
        raise RuntimeError("an error of the plugin")


class _Nameless(_Good):
    paper: ClassVar[str] = ""


class _Noise(nn.Module):
    """A layer that is different each time it is called."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states + torch.rand_like(hidden_states)


@dataclass(frozen=True, kw_only=True)
class _Unsteady(Method):
    name: ClassVar[str] = "unsteady"
    paper: ClassVar[str] = "a test"

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        if sparsity == 0:
            return Pruned(Plan.dense(decoder.n_layers))
        return Pruned(Plan.replace(decoder.n_layers, Span(1, 3), "noise"), {1: _Noise()})


def _failures(method: Method) -> dict[str, str]:
    outcomes = check_method(method, ["llama"])
    return {outcome.check: outcome.detail for outcome in outcomes if outcome.status == "failed"}


@pytest.mark.parametrize(
    ("method", "check", "detail"),
    [
        (_Leaves(), "calibrate is clean", "calibrate changed the hooks of model.layers.0"),
        (_Draws(), "prune is clean", "prune changed torch's random state"),
        (_Spoils(), "prune is clean", "prune changed the weight model.layers.0"),
        (_Always(), "zero is identity", "logits at sparsity 0 differ"),
        (_TooMany(), "exact count", "layers should be removed"),
        (_Boasts(), "exact count", "size() returns 1 parameters"),
        (_Random(), "same seed", "the same seed gave two plans"),
        (_Untrained(), "students", "trains is True, yet there are 0 students"),
        (_Blind(), "refusal", "unsupported() must return None or a reason in words, got 'no'"),
        (_Raises(), "exact count", "RuntimeError: an error of the plugin"),
        (_Nameless(), "declaration", "class attribute paper must be a str and not empty"),
        (_Unstated(), "declaration", "returns_model must be a bool and not empty, got None"),
        (_Unsteady(), "generate", "model and path differ"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else None,
)
def test_a_broken_promise_is_found(method: Method, check: str, detail: str) -> None:
    failures = _failures(method)
    assert check in failures, failures
    assert detail in failures[check]


@pytest.mark.parametrize(
    ("name", "check", "detail"),
    [
        ("Mutates", "prune is clean", FAULTS["Mutates"]),
        ("WritesData", "prune is clean", "the weight model.layers.2.mlp.up_proj.weight"),
        ("SwapsLayer", "prune is clean", FAULTS["SwapsLayer"]),
        ("SwapsModule", "prune is clean", FAULTS["SwapsModule"]),
        ("HooksAll", "prune is clean", FAULTS["HooksAll"]),
        ("Configures", "prune is clean", FAULTS["Configures"]),
        ("Halves", "prune is clean", FAULTS["Halves"]),
        ("WritesTokens", "prune is clean", "prune wrote into the calibration tokens"),
        ("WritesTokensEarly", "calibrate is clean", "calibrate wrote into the calibration tokens"),
        ("WritesStatistics", "prune is clean", "prune changed cosine of the calibration"),
        ("Poisons", "declaration", "must not go under 'shared'"),
        ("Poisons", "same calibration", "calibrating twice gave two values of cosine"),
        ("Seeds", "prune is clean", "prune changed torch's random state"),
        ("SizeExits", "exact count", "it called sys.exit(3)"),
        ("UnsupportedRaises", "refusal", "no idea"),
        ("KeyRaises", "declaration", "cannot be made: RuntimeError: no key"),
        ("PostInitExits", "declaration", "cannot be made: it called sys.exit(0)"),
        ("ReprRaises", "declaration", "cannot be made: TypeError: no name"),
        ("CalibrateExits", "calibrate is clean", "it called sys.exit('enough')"),
        ("GivesNothing", "exact count", "NoneType"),
    ],
)
def test_validate_names_what_would_harm_others(
    name: str, check: str, detail: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", f"misbehaving:{name}", "--families", "llama", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 1
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows[check]["status"], detail in rows[check]["detail"]) == ("failed", True), rows


def test_validate_refuses_an_abstract_class(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["validate", "misbehaving:Abstract"])
    assert ended.value.code == 2
    assert "'misbehaving:Abstract' is abstract: it does not define prune" in capsys.readouterr().err


def test_a_method_that_keeps_all_promises_passes() -> None:
    assert _failures(_Good()) == {}


def test_a_refusal_in_words_ends_the_checks_of_that_family() -> None:
    class Refuses(_Good):
        families: ClassVar[tuple[str, ...]] = ("opt",)

    outcomes = list(check_method(Refuses(), ["llama"]))
    assert [(outcome.check, outcome.status) for outcome in outcomes] == [
        ("declaration", "passed"),
        ("refusal", "refused"),
    ]
    assert "supports opt, not llama" in outcomes[-1].detail
