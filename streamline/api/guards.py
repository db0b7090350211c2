"""Calls of a method's code: whatever it raises, ends or changes stays with its own variants.

Example::

    watch = Watch(dense)
    with watch.over("mutate: prune"):           # a MethodError if it changed the model or exits
        method.prune(dense.decoder, ...)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from streamline.api.named import named_content
from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.engine.model_state import ModelState
from streamline.errors import MethodError, StreamlineError
from streamline.hashing import content_key
from streamline.method import Method, Pruned
from streamline.plan import Plan
from streamline.registry import source_key
from streamline.training.loop import fingerprint

if TYPE_CHECKING:
    from streamline.api.variants import Dense

__all__ = ["Watch", "calibration_key", "checked", "no_exit", "own_copy", "require_intact"]

_NAMED = 3  # changes that a message lists


@contextmanager
def no_exit(doing: str) -> Iterator[None]:
    """Let code run that must not end the process.

    Args:
        doing: Whose code it is and what it does, for the message.

    Raises:
        MethodError: If it calls ``sys.exit``.
    """
    try:
        yield
    except SystemExit as error:
        raise MethodError(
            f"{doing} called sys.exit({error.code!r}); a method raises an error instead"
        ) from error


class Watch:
    """Looks after a model while methods' code runs, and puts it back.

    Args:
        decoder: The model, as every method must leave it.
        dense: Where its weights can be had again, if they can.
    """

    def __init__(self, decoder: Decoder, dense: Dense | None = None) -> None:
        self._state = ModelState(decoder)
        self._decoder = decoder
        self._dense = dense

    @contextmanager
    def over(self, doing: str) -> Iterator[None]:
        """Let a method's code run.

        Args:
            doing: Whose code it is and what it does, for the message.

        Raises:
            MethodError: If it ends the process or changes the model, which is as before then; if
                the weights cannot be had again, no more can be made of it.
        """
        try:
            with no_exit(doing):
                yield
        except Exception as error:
            changes = self._put_back()
            if changes:
                error.add_note(f"It also changed {_listed(changes)}.")
            raise
        except BaseException:
            self._put_back()
            raise
        changes = self._put_back()
        if changes:
            raise MethodError(
                f"{doing} changed {_listed(changes)}; a method must leave the model as it was. "
                + self._outcome()
            )

    def _put_back(self) -> list[str]:
        """Undo what was changed; in words what that was."""
        changes = self._state.changes()
        if not changes and not self._state.traces() and self._state.random.same():
            return []
        self._state.restore()
        written = self._state.written()
        if written:
            other = self._rewrite(written)
            same = {f"the weight {name}" for name in written - other}
            changes = [change for change in changes if change not in same]
        return changes

    def _rewrite(self, written: set[str]) -> set[str]:
        """Give weights their values again; names of those that had lost them."""
        dense = self._dense
        if dense is None or dense.original is None:
            if dense is not None and fingerprint(self._decoder) == dense.fingerprint:
                return set()
            if dense is not None:
                dense.spoiled.extend(sorted(written))
            return written
        try:
            found = dense.original()
        except StreamlineError:
            dense.spoiled.extend(sorted(written))
            return written
        fresh: dict[str, Any] = {**dict(found.named_parameters()), **dict(found.named_buffers())}
        return {name for name in sorted(written) if self._state.refill(name, fresh[name])}

    def _outcome(self) -> str:
        if self._dense is not None and self._dense.spoiled:
            return "Its weights cannot be had again: load it anew"
        return "It has been put back"


def require_intact(dense: Dense) -> None:
    """Refuse to work with a model whose weights a method has written over.

    Raises:
        MethodError: If they could not be had again.
    """
    if dense.spoiled:
        raise MethodError(
            f"a method has changed weights of {dense.name} ({_listed(dense.spoiled)}) that cannot "
            "be had again; load the model anew"
        )


def calibration_key(method: Method) -> str:
    """What a calibration is kept under: shared only by methods that do not measure their own.

    One that does shares it with others of its class, source and :meth:`Method.calibration_key`,
    whatever key that is.
    """
    key = method.calibration_key()
    cls = type(method)
    if cls.calibrate is Method.calibrate:
        return key
    return content_key(
        [f"{cls.__module__}.{cls.__qualname__}", source_key(method), named_content(method), key]
    )


def own_copy(calibration: Calibration) -> Calibration:
    """A calibration that a method may do with as it likes."""
    return replace(
        calibration,
        cosine=calibration.cosine.clone(),
        angle=calibration.angle.clone(),
        extras={name: value.clone() for name, value in calibration.extras.items()},
        facts=dict(calibration.facts),
    )


def checked(pruned: Any, decoder: Decoder, doing: str) -> Pruned:
    """What a method made, if the stages after it can use it.

    Args:
        pruned: What it returned.
        decoder: The dense model.
        doing: Whose code it is and what it does, for the message.

    Raises:
        MethodError: If it is no :class:`Pruned`, does not fit the model, would train weights of
            the dense model, or has notes that no record can hold.
    """
    if not isinstance(pruned, Pruned) or not isinstance(pruned.plan, Plan):
        raise MethodError(f"{doing} must return a Pruned with a Plan, got {pruned!r:.200}")
    plan = pruned.plan
    if plan.n_layers != decoder.n_layers:
        raise MethodError(
            f"{doing} made a plan for {plan.n_layers} layers, and {decoder.name} has "
            f"{decoder.n_layers}"
        )
    without = [
        index
        for index, step in enumerate(plan.steps)
        if not step.dense and not isinstance(pruned.modules.get(index), nn.Module)
    ]
    if pruned.model is None and without:
        raise MethodError(f"{doing} gave no module for step {without[0]} of its plan")
    dense = {p.untyped_storage().data_ptr() for p in decoder.model.parameters() if not p.is_meta}
    for student in pruned.students:
        shared = [
            name
            for name, p in student.module.named_parameters()
            if p.untyped_storage().data_ptr() in dense
        ]
        if shared:
            raise MethodError(
                f"{doing} gave the student for layers {student.span.start} to "
                f"{student.span.stop - 1} the dense model's own weights "
                f"({shared[0]}), which training would change; give it a copy"
            )
    try:
        content_key(pruned.notes)
    except (TypeError, ValueError) as error:
        raise MethodError(
            f"{doing} gave notes that JSON cannot hold: {error}; use plain finite values"
        ) from error
    return pruned


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
