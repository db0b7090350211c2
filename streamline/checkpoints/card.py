"""The model card of a checkpoint: what it is, what was measured, how to load it.

The metadata are huggingface_hub's own, so that the hub finds the folder by its base model, its tags
and its results. Names come from anywhere: in the text they are no markup.

Example::

    write_card(folder, plan, provenance, record=record)
    ModelCard.load(folder / "README.md").data.base_model       # "facebook/opt-1.3b"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from streamline.checkpoints.measured import averages, index_entries, task_rows
from streamline.errors import StreamlineError
from streamline.files import write_text_atomic
from streamline.modeling.modeling_streamline import FILES
from streamline.plan import Plan
from streamline.report.render import code, inert
from streamline.results.record import Record
from streamline.sources.hub.failures import hub_errors
from streamline.sources.names import ModelSource, resolve_model
from streamline.sources.wheels import SMOLLM2

__all__ = ["CARD", "TAGS", "is_repository", "write_card"]

CARD = "README.md"
TAGS = ("pruned", "layer-pruning", "streamline-bench")
_EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"


def write_card(
    folder: Path,
    plan: Plan,
    provenance: Mapping[str, Any],
    *,
    serves: str = "transformers",
    record: Record | None = None,
    dense: Record | None = None,
) -> None:
    """Write the card of a checkpoint.

    Args:
        folder: The checkpoint's.
        plan: Which layers stayed, went, or were replaced.
        provenance: What stands in `provenance.json`.
        serves: Where the model can be served.
        record: What was measured of it; None if nothing was.
        dense: What was measured of the dense model, which the ratio to it takes its error from.
    """
    cell = {"model": None, "method": None, "sparsity": None, "seed": None, "recovery": "none"}
    cell |= provenance.get("cell") or {}
    base, hub_id, licence = _base(cell["model"])
    title = f"{base} {cell['method'] or 'pruned'}"
    if cell["sparsity"] is not None:
        title += f" {cell['sparsity']:g}"
    card = ModelCardData(
        base_model=hub_id,
        library_name="transformers",
        license=licence,
        pipeline_tag="text-generation",
        tags=list(TAGS),
        model_name=title,
        eval_results=(record and index_entries(record)) or None,
    )
    environment = Environment(
        loader=PackageLoader("streamline.checkpoints", ""),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "inert": lambda value: inert(str(value)),
        "code": lambda value: code(str(value)),
        "cell": lambda text: text.replace("|", "\\|"),  # within code, which escapes nothing else
    }
    content = environment.get_template("card.md.jinja").render(
        metadata=card.to_yaml(),
        title=title,
        base=base,
        hub_id=hub_id,
        through=base if hub_id and base != hub_id.rpartition("/")[2] else None,
        licence=licence,
        cell=cell,
        method=provenance.get("method") or cell["method"],
        paper=provenance.get("paper"),
        what=_what(plan),
        parameters=_parameters(provenance),
        removed=_listed(plan.removed_layers),
        kept=_listed(plan.kept_layers),
        replacement=plan.replacement,
        serves=serves,
        plain=provenance["plain"],
        files=FILES,
        training={n: _training(facts) for n, facts in (provenance.get("training") or {}).items()},
        texts=provenance.get("texts") or {},
        rows=task_rows(record) if record else (),
        averages=averages(record, dense) if record else (),
        verified=provenance.get("verified", False),
        versions=provenance.get("versions") or {},
    )
    ModelCard(content)  # its metadata can be read again
    write_text_atomic(folder / CARD, content)


def _base(name: str | None) -> tuple[str, str | None, str | None]:
    """A base model's name for people, its id on the hub and its licence, as far as known."""
    if name is None:
        return "a model", None, None
    try:
        source = resolve_model(name)
    except StreamlineError:  # a model of the caller's own, by whatever name
        return Path(name).name or name, None, None
    if source.kind == "wheel":
        return Path(source.location).stem, _EMBEDDED, SMOLLM2.licence.lower()
    data = _metadata(source)
    if source.kind == "hub":
        return source.location.rpartition("/")[2], source.location, data.get("license")
    known = data.get("base_model")
    inner = known if isinstance(known, str) and is_repository(known) else None
    return Path(source.location).name, inner, data.get("license")


def is_repository(name: str) -> bool:
    """Whether a text is written as a repository of the hub: ``OWNER/NAME``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def _metadata(source: ModelSource) -> dict[str, Any]:
    """The metadata of a base model's own card; empty if it has none or it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        file = Path(source.location) / CARD
        if source.kind == "hub":
            file = Path(hf_hub_download(source.location, CARD, revision=source.revision))
        found: dict[str, Any] = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (*hub_errors(), yaml.YAMLError):
        return {}
    licence = found.get("license")
    return found | {"license": licence if isinstance(licence, str) else None}


def _what(plan: Plan) -> str:
    n = len(plan.removed_layers)
    if not n:
        return f"all {plan.n_layers} layers stay, each smaller or with another part"
    layers = "layer is" if n == 1 else "layers are"
    instead = " and replaced" if plan.replacement else ""
    return f"{n} of {plan.n_layers} {layers} removed{instead}"


def _parameters(provenance: Mapping[str, Any]) -> str:
    dense, left = provenance.get("dense_parameters"), provenance.get("parameters")
    if not dense or not left:
        return ""
    return f"{left:,} of {dense:,} parameters remain ({100 * (1 - left / dense):.1f} % removed)."


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _training(facts: Mapping[str, Any]) -> str:
    """What a training was, in words: only its plain figures."""
    shown = [
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}"
        for name, value in facts.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return ", ".join(shown) or "as in `provenance.json`"
