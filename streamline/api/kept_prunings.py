"""What methods decided, on disk and in memory: nothing is searched for a second time.

Variants that differ in their recovery alone share one decision. On disk a plan is kept with the
modules it needs, as far as these are what their specs say: a layer of the model with other weights
or without a sublayer, or a module of :mod:`streamline.modeling`. Tensors of the dense model are not
written. Models that methods return and networks that are still to be trained are made again by
another process; so is a module of any other kind.

Example::

    file = pruning_file(target, dense, tokens, folder)
    found = read_pruning(file, dense.decoder)       # None if it is not there
    more = another(variant, other, dense.decoder)   # for a second variant of the same decision
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from streamline.api.guards import calibration_key
from streamline.api.named import read_content
from streamline.api.variants import Dense, Target, Variant
from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.engine.assemble import shared_copy
from streamline.engine.decoder import Decoder
from streamline.hashing import content_key, program
from streamline.kept import kept_tensors, write_tensors
from streamline.method import Pruned
from streamline.modeling.modeling_layers import LayerModule, Spec, build, spec_of
from streamline.plan import Plan
from streamline.registry import source_key
from streamline.sources.batches import batches_fingerprint

__all__ = ["another", "pruning_file", "read_pruning", "write_pruning"]

log = logging.getLogger(__name__)


def pruning_file(target: Target, dense: Dense, tokens: Tensor, folder: Path) -> Path:
    """Where a pruning is kept: named by everything that decides it, which no recovery does.

    Args:
        target: What is wanted.
        dense: The model.
        tokens: Calibration tokens, [N, T], int64.
        folder: Where calibrations are kept too.
    """
    key = content_key(
        [
            *program(),
            dense.fingerprint,
            str(dense.decoder.dtype),
            batches_fingerprint(tokens),
            calibration_key(target.method),
            source_key(target.method),
            repr(target.method),
            read_content(target.method, dense.name, target.sparsity),
            target.sparsity,
            target.seed,
        ]
    )
    return folder / "prunings" / f"{target.decision}--{key[:32]}.safetensors"


def another(one: Variant, target: Target, decoder: Decoder) -> Variant:
    """A variant of what another one has decided, with modules and any model of its own.

    Tensors are shared, since what comes after writes to none of them, but for those of networks
    that are still to be trained.

    Args:
        one: The variant as pruned.
        target: What is wanted.
        decoder: The dense model.
    """
    pruned = one.pruned
    trained = {id(t) for student in pruned.students for _, t in _tensors(student.module)}
    made: list[nn.Module] = [decoder.model, *pruned.modules.values()]
    made += [pruned.model] if pruned.model is not None else []
    kept: dict[int, Any] = {
        id(t): t for module in made for _, t in _tensors(module) if id(t) not in trained
    }
    kept |= {id(layer): layer for layer in decoder.layers}
    kept[id(decoder.config)] = decoder.config
    return replace(one, target=target, pruned=copy.deepcopy(pruned, kept))


def write_pruning(file: Path, pruned: Pruned, decoder: Decoder, spent: Mapping[str, Any]) -> bool:
    """Keep a pruning and what it took, unless it cannot be made again from a file.

    Returns:
        Whether it is kept; of several processes the first one's is.
    """
    if pruned.model is not None or pruned.students or _shares(pruned, decoder):
        return False
    tensors: dict[str, Tensor] = {}
    specs: dict[int, Spec] = {}
    frozen: list[str] = []
    for index, module in pruned.modules.items():
        specs[index] = spec_of(module)
        again = _made(decoder, pruned.plan.steps[index].layer, specs[index])
        if again is None or not _alike(module, again):
            return False
        bare = dict(_tensors(again))
        own = {name: t for name, t in _tensors(module) if bare[name] is not t}
        tensors |= {f"{index}/{name}": t for name, t in own.items()}
        frozen += [f"{index}/{name}" for name, t in own.items() if not t.requires_grad]
    facts = {
        "plan": pruned.plan.to_json(),
        "specs": list(specs.items()),
        "frozen": frozen,
        "notes": pruned.notes,
        "spent": dict(spent),
    }
    if not leads():
        return True
    try:
        write_tensors(file, tensors, {"facts": json.dumps(facts)})
    except OSError as error:  # the run can do without
        log.warning("the pruning is not kept: %s", error)
        return False
    return True


def _shares(pruned: Pruned, decoder: Decoder) -> bool:
    """Whether modules share tensors with each other, or with dense layers at other steps."""
    dense = {id(t) for layer in decoder.layers for _, t in _tensors(layer)}
    seen: set[int] = set()
    for index, module in pruned.modules.items():
        here = {id(t) for _, t in _tensors(decoder.layers[pruned.plan.steps[index].layer])}
        own = {id(t) for _, t in _tensors(module)} - here
        if own & (seen | dense):
            return True
        seen |= own
    return False


def read_pruning(file: Path, decoder: Decoder) -> tuple[Pruned, dict[str, Any]] | None:
    """A pruning and what it took, or None; a damaged file is set aside."""
    found = shared(lambda: kept_tensors(file))
    if found is None:
        return None
    tensors, facts = found[0], json.loads(found[1]["facts"])
    plan = Plan.from_json(facts["plan"])
    modules: dict[int, nn.Module] = {}
    for index, spec in facts["specs"]:
        module = _made(decoder, plan.steps[index].layer, spec)
        if module is None:
            return None
        for name, bare in list(_tensors(module)):
            value = tensors.get(f"{index}/{name}")
            if value is not None:
                owner, _, attribute = name.rpartition(".")
                value = value.to(bare.device)
                if isinstance(bare, nn.Parameter):
                    trained = f"{index}/{name}" not in facts["frozen"]
                    value = nn.Parameter(value, requires_grad=trained)
                setattr(module.get_submodule(owner), attribute, value)
        modules[index] = module
    return Pruned(plan, modules, notes=facts["notes"]), facts["spent"]


def _made(decoder: Decoder, layer: int, spec: Spec) -> nn.Module | None:
    """A module of a spec with the dense layer's tensors where it has such; None if it has none."""
    if any(p.is_meta for p in decoder.layers[layer].parameters()):
        return None
    base = shared_copy(decoder.layers[layer], {id(decoder.config): decoder.config})
    try:
        module = build(spec, decoder.config, base)
    except (ValueError, LookupError):
        return None
    if isinstance(module, LayerModule):
        module.tuple_output = decoder.family.tuple_output
        module.to(decoder.device)
    return module


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _alike(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules differ in the values of their tensors alone."""
    pairs = zip_longest(module.named_modules(), other.named_modules(), fillvalue=("", None))
    if not all(name == same and _own(one) == _own(two) for (name, one), (same, two) in pairs):
        return False
    return [(name, t.shape) for name, t in _tensors(module)] == [
        (name, t.shape) for name, t in _tensors(other)
    ]


def _own(module: nn.Module | None) -> Any:
    """What a module is beside its tensors and parts."""
    held = ("_parameters", "_buffers", "_modules")
    return type(module), {k: v for k, v in vars(module).items() if k not in held}
