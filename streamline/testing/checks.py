"""What every method promises on a model, one check a function.

A check is called with a :class:`Subject` and raises :class:`Violation` with what was found and what
was expected. Add one by writing it and naming it in :data:`CHECKS`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.calibration import Calibration
from streamline.checkpoints import checkpoint
from streamline.engine.assemble import assemble
from streamline.engine.budget import layers_to_remove
from streamline.engine.decoder import Decoder
from streamline.engine.model_state import ModelState
from streamline.engine.paths import dense_path
from streamline.engine.stored import stored_of
from streamline.errors import StreamlineError, UnsupportedModelError
from streamline.method import DepthMethod, Method, Unmade
from streamline.testing.models import tiny_config, tiny_tokenizer
from streamline.testing.snapshot import differences, snapshot
from streamline.testing.subject import SPARSITY, Subject

__all__ = ["CHECKS", "Violation", "check_declaration", "check_refusal"]

_TOLERANCE = 1e-3
_DECLARED: dict[str, type] = {
    "name": str,
    "paper": str,
    "trains": bool,
    "trainable": bool,
    "families": tuple,
    "supports_streaming": bool,
    "returns_model": bool,
}


class Violation(StreamlineError):
    """A method does not keep a promise of the contract."""


def check_declaration(method: Method) -> None:
    """A frozen dataclass of defaults, with the class attributes of the contract."""
    cls = type(method)
    if isinstance(method, Unmade):
        raise Violation(f"{method.spec} cannot be made: {method.reason}")
    parameters = getattr(cls, "__dataclass_params__", None)
    _require(
        parameters is not None and parameters.frozen, f"{cls.__name__} is not a frozen dataclass"
    )
    for name, kind in _DECLARED.items():
        value = getattr(cls, name, None)
        _require(
            isinstance(value, kind) and value not in ("", ()),
            f"the class attribute {name} must be a {kind.__name__} and not empty, got {value!r}",
        )
    again = dataclasses.replace(method)
    _require(again == method, "two methods of equal fields are not equal")
    _require(
        repr(again) == repr(method),
        f"two methods of equal fields are shown as {method!r} and {again!r}",
    )
    key = method.calibration_key()
    _require(
        isinstance(key, str) and key == again.calibration_key(),
        f"calibration_key() must be a text that the fields decide, got {key!r}",
    )
    own = cls.calibrate is not Method.calibrate
    _require(
        not own or key != "shared",
        f"calibrate is {cls.__name__}'s own, so what it measures must not go under "
        "'shared', the key of those that do not measure for themselves",
    )


def check_refusal(subject: Subject) -> str | None:
    """``unsupported`` returns None or a reason in words, which is given back."""
    reason = subject.method.unsupported(subject.decoder)
    _require(
        reason is None or (isinstance(reason, str) and len(reason.split()) >= 3),
        f"unsupported() must return None or a reason in words, got {reason!r}",
    )
    return reason


def _check_calibrate_is_clean(subject: Subject) -> None:
    """Calibration leaves weights, hooks, modes and random state as they were."""
    with _unchanged(subject, "calibrate"):
        subject.method.calibrate(subject.decoder, subject.batches)


def _check_same_calibration(subject: Subject) -> None:
    """Calibrating again measures the same, whatever the global random state."""
    first = subject.calibration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        again = subject.method.calibrate(subject.decoder, subject.batches)
    named = _statistics(first), _statistics(again)
    _require(list(named[0]) == list(named[1]), "calibrating twice gave other statistics")
    for name, value in named[0].items():
        same = torch.allclose(value, named[1][name], rtol=0.0, atol=_TOLERANCE, equal_nan=True)
        _require(same, f"calibrating twice gave two values of {name}")


def _check_prune_is_clean(subject: Subject) -> None:
    """Pruning leaves the dense model and the random state as they were."""
    calibration = subject.given(subject.calibration)
    before = {name: value.clone() for name, value in _statistics(calibration).items()}
    with _unchanged(subject, "prune"):
        subject.method.prune(subject.decoder, calibration, SPARSITY, subject.batches, 0)
    for name, value in _statistics(calibration).items():
        same = name in before and torch.equal(before[name].nan_to_num(), value.nan_to_num())
        _require(same, f"prune changed {name} of the calibration, which other methods share")


def _check_identity(subject: Subject) -> None:
    """Sparsity 0 changes no logit."""
    pruned = subject.prune(0.0)
    _close(
        subject.logits(pruned.path(subject.decoder)),
        subject.logits(dense_path(subject.decoder)),
        "logits at sparsity 0 differ from the dense model's",
    )


def _check_count(subject: Subject) -> None:
    """Plan, ``size`` and the built model agree on layers and parameters."""
    pruned, decoder, method = subject.pruned, subject.decoder, subject.method
    removed = pruned.plan.removed_layers
    if isinstance(method, DepthMethod):
        target = layers_to_remove(decoder, SPARSITY)
        _require(
            len(removed) == target, f"{target} layers should be removed, the plan removes {removed}"
        )
    counted = pruned.n_parameters(decoder)
    built = _built(subject)
    held = sum(parameter.numel() for parameter in built.parameters())
    _require(counted == held, f"the plan counts {counted} parameters, the model holds {held}")
    meta = Decoder.from_config(tiny_config(subject.family))
    size = method.size(meta, SPARSITY)
    if size is not None:
        _require(
            size.pruned == counted,
            f"size() returns {size.pruned} parameters from the config, pruning leaves {counted}",
        )
    if size is not None and size.n_removed is not None:
        _require(
            len(removed) == size.n_removed,
            f"size() returns {size.n_removed} removed layers, the plan removes {removed}",
        )


def _check_same_seed(subject: Subject) -> None:
    """The same seed gives the same plan and modules, whatever the global random state."""
    first = subject.pruned
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        again = subject.method.prune(
            subject.decoder,
            subject.given(subject.method.calibrate(subject.decoder, subject.batches)),
            SPARSITY,
            subject.batches,
            0,
        )
    before, after = first.plan.to_json(), again.plan.to_json()
    _require(before == after, f"the same seed gave two plans: {before} and {after}")
    _close(
        subject.logits(again.path(subject.decoder)),
        subject.logits(first.path(subject.decoder)),
        "the same seed gave two models",
    )


def _check_students(subject: Subject) -> None:
    """A method that trains returns students that are in the model; others return none."""
    students = subject.pruned.students
    _require(
        bool(students) == subject.method.trains,
        f"trains is {subject.method.trains}, yet there are {len(students)} students",
    )
    inside = {id(m) for module in subject.pruned.modules.values() for m in module.modules()}
    for student in students:
        _require(
            id(student.module) in inside, f"the student for {student.span} is not in the model"
        )


def _check_returns_model(subject: Subject) -> None:
    """``returns_model`` states whether ``prune`` returns a model of its own."""
    found = subject.pruned.model is not None
    stated = subject.method.returns_model
    _require(
        found == stated,
        f"returns_model is {stated}, yet prune returns {'a' if found else 'no'} model",
    )


def _check_generate(subject: Subject) -> None:
    """The built model gives the path's logits, and generates alike with and without cache."""
    model = _built(subject)
    with torch.no_grad():
        logits = model(subject.ids).logits
    _close(logits, subject.logits(subject.pruned.path(subject.decoder)), "model and path differ")
    cached, plain = _generate(model, subject.ids, True), _generate(model, subject.ids, False)
    _require(
        torch.equal(cached, plain),
        f"generate with cache gives {cached.tolist()}, without {plain.tolist()}",
    )


def _check_checkpoint(subject: Subject) -> None:
    """What was saved loads as the same model, and generates the same; or nothing is saved."""
    if stored_of(_built(subject)) is not None:
        with tempfile.TemporaryDirectory() as folder, suppress(UnsupportedModelError):
            checkpoint.save(subject.pruned, subject.decoder, None, folder, {}, verify=False)
            raise Violation("a model was saved that no checkpoint holds as it is stored")
        return
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "checkpoint"
        checkpoint.save(subject.pruned, subject.decoder, tiny_tokenizer(), target, {}, verify=False)
        loaded, _, _ = checkpoint.load(target)
        with torch.no_grad():
            logits = loaded(subject.ids).logits
        _close(
            logits,
            subject.logits(subject.pruned.path(subject.decoder)),
            "logits differ after saving and loading",
        )
        before = _generate(_built(subject), subject.ids, True)
        after = _generate(loaded, subject.ids, True)
        _require(torch.equal(before, after), "generate differs after saving and loading")


CHECKS: dict[str, Callable[[Subject], None]] = {
    "calibrate is clean": _check_calibrate_is_clean,
    "same calibration": _check_same_calibration,
    "prune is clean": _check_prune_is_clean,
    "zero is identity": _check_identity,
    "exact count": _check_count,
    "same seed": _check_same_seed,
    "students": _check_students,
    "returns_model": _check_returns_model,
    "generate": _check_generate,
    "checkpoint": _check_checkpoint,
}
"""The checks that need a model, by name, in the order they run."""


def _built(subject: Subject) -> Any:
    """The pruned model as a model of its own."""
    if subject.pruned.model is not None:
        return subject.pruned.model
    return assemble(subject.pruned.path(subject.decoder))


def _generate(model: Any, ids: Tensor, use_cache: bool) -> Tensor:
    """Eight greedy tokens, [2, T + 8]."""
    result: Tensor = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        use_cache=use_cache,
    )
    return result


def _close(found: Tensor, expected: Tensor, message: str) -> None:
    _require(found.shape == expected.shape, f"{message}: shapes {found.shape}, {expected.shape}")
    gap = (found.float() - expected.float()).abs().max().item()
    _require(gap <= _TOLERANCE, f"{message} by up to {gap:.2e} (allowed {_TOLERANCE:.0e})")


@contextmanager
def _unchanged(subject: Subject, doing: str) -> Iterator[None]:
    state, tokens = ModelState(subject.decoder), subject.batches.clone()
    before = snapshot(subject.model)
    yield
    found = (*state.changes(), *differences(before, snapshot(subject.model)), *state.traces())
    changed = list(dict.fromkeys(found))
    _require(not changed, f"{doing} changed {', '.join(changed[:3])}")
    _require(
        torch.equal(tokens, subject.batches),
        f"{doing} wrote into the calibration tokens, which other methods share",
    )


def _statistics(calibration: Calibration) -> dict[str, Tensor]:
    """All that a calibration holds, by name."""
    return {"cosine": calibration.cosine, "angle": calibration.angle, **calibration.extras}


def _require(kept: bool, message: str) -> None:
    if not kept:
        raise Violation(message)
