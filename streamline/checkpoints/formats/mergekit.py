"""A plan that only drops layers as a mergekit config: anyone can make the model from its base.

Example::

    write_mergekit(Path("out/checkpoint"), Path("out/recipe"))      # then: mergekit-yaml ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from streamline.checkpoints.formats.form import Form, read_form, refuse
from streamline.checkpoints.info import CheckpointInfo, read_info
from streamline.engine.families import family_of
from streamline.files import write_text_atomic
from streamline.plan import Plan
from streamline.sources.models import weights_folder
from streamline.sources.names import resolve_model
from streamline.sources.weights import WeightSource

__all__ = ["FILE", "passthrough", "why_not", "write_mergekit"]

NAME, FILE = "mergekit", "mergekit.yaml"
#: Types whose layers mergekit counts right; of others it keeps fields of the dense model.
TYPES = ("gpt2", "llama", "mistral", "phi3")


def why_not(form: Form, plan: Plan) -> str | None:
    """Why a config of mergekit cannot say how a model is made; None if it can."""
    if form.model_type not in TYPES or getattr(form.config, "layer_types", None):
        return f"it does not count the layers of {form.model_type} right; it does of " + (
            ", ".join(TYPES)
        )
    if not form.plain or any(not step.dense for step in plan.steps):
        return "a passthrough takes layers of the base model as they are, and some of these are not"
    if plan.is_dense:
        return "no layer is left out"
    return None


def passthrough(plan: Plan, base: str, dtype: str) -> dict[str, Any]:
    """The config of a plan that only drops layers.

    Args:
        plan: The plan.
        base: The base model: a hub id, perhaps with ``@REVISION``, or a folder.
        dtype: Number format of the weights.
    """
    ranges: list[list[int]] = []
    for layer in plan.kept_layers:
        if ranges and ranges[-1][1] == layer:
            ranges[-1][1] += 1
        else:
            ranges.append([layer, layer + 1])
    slices = [{"sources": [{"model": base, "layer_range": found}]} for found in ranges]
    return {"slices": slices, "merge_method": "passthrough", "dtype": dtype}


def write_mergekit(checkpoint: Path, folder: Path) -> None:
    """Write the config that makes a checkpoint from its base model.

    Args:
        checkpoint: A folder that :func:`streamline.checkpoints.checkpoint.save` wrote.
        folder: A folder; it gets one file.

    Raises:
        UnsupportedModelError: If the checkpoint is more than layers of its base model.
        AssetError: If the base model is not there any more.
    """
    info, form = read_info(checkpoint), read_form(checkpoint)
    reason = why_not(form, info.plan)
    if reason is None:
        reason = _why_other_weights(checkpoint, info, form)
    if reason is not None:
        raise refuse(NAME, reason)
    source = resolve_model(info.provenance["cell"]["model"])
    base = source.known_as if source.kind == "hub" else str(weights_folder(source.name))
    config = passthrough(info.plan, base, info.provenance["dtype"])
    head = f"# mergekit-yaml {FILE} OUT --copy-tokenizer\n"
    write_text_atomic(folder / FILE, head + yaml.safe_dump(config, sort_keys=False))


def _why_other_weights(checkpoint: Path, info: CheckpointInfo, form: Form) -> str | None:
    """Why a checkpoint is not made of its base model's weights; None if every tensor is equal."""
    cell = info.provenance.get("cell") or {}
    if not cell.get("model"):
        return "its provenance names no base model"
    prefix = f"{family_of(form.model_type).layers}."
    with WeightSource(weights_folder(cell["model"])) as base, WeightSource(checkpoint) as own:
        for key in own:
            place = key
            if key.startswith(prefix):
                index, _, rest = key.removeprefix(prefix).partition(".")
                place = f"{prefix}{info.plan.kept_layers[int(index)]}.{rest}"
            place = next((name for name in (place, _inner(place)) if name in base), "")
            dtype = own[key].dtype
            if not place or not torch.equal(base.read(place, dtype), own.read(key)):
                return f"{key} is not as in {cell['model']}: its weights were trained or changed"
    return None


def _inner(name: str) -> str:
    """A tensor's name in older files of a base model, which leave out the outermost module."""
    return name.partition(".")[2]
