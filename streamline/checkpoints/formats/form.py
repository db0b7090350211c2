"""What a pruned model's layers are, in the terms that decide which formats can hold it.

Example::

    form = form_of(pruned.path(decoder))       # or read_form("out/checkpoint")
    form.plain, form.kinds                     # False, ("layer", "ffn", "layer")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from streamline.checkpoints.described import describe
from streamline.engine.assemble import assemble
from streamline.engine.paths import Path as LayerPath
from streamline.errors import UnsupportedModelError
from streamline.modeling.modeling_layers import Spec
from streamline.modeling.modeling_streamline import register

__all__ = ["Form", "form_of", "form_of_config", "read_form", "refuse"]


@dataclass(frozen=True)
class Form:
    """The form of a model.

    Attributes:
        model_type: The base model's type, as transformers names it.
        plain: Whether all layers are the base model's own, so that transformers alone loads it.
        layers: The spec of each layer, in order.
        config: The model's config; its fields are the base model's.
        whole: Whether embeddings, final norm, head and what layers were built with are the base
            model's own.
    """

    model_type: str
    plain: bool
    layers: tuple[Spec, ...]
    config: Any
    whole: bool = True

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer; a layer with another one's weights is of that one's kind."""
        return tuple(str(self.layer(index)["kind"]) for index in range(len(self.layers)))

    def layer(self, index: int) -> Spec:
        """The spec of a layer, of a shared one that of what it shares."""
        spec = self.layers[index]
        return dict(spec["module"]) if spec["kind"] == "shared" else spec


def form_of(path: LayerPath) -> Form:
    """The form of a pruned model in memory.

    Args:
        path: From :meth:`streamline.method.Pruned.path`.
    """
    model = assemble(path)
    describe(model, path.decoder.family)
    return form_of_config(model.config)


def read_form(folder: str | Path) -> Form:
    """The form of a checkpoint."""
    register()
    return form_of_config(AutoConfig.from_pretrained(folder))


def refuse(target: str, reason: str) -> UnsupportedModelError:
    """The error of a format that cannot hold a model.

    Args:
        target: The format.
        reason: Why, as the end of a sentence.
    """
    return UnsupportedModelError(f"{target} cannot hold this model: {reason}")


def form_of_config(config: Any) -> Form:
    """The form of a model, of its config as it is saved."""
    text = config.get_text_config()
    fields = getattr(config, "streamline", None)
    if fields is None:
        layers = ({"kind": "layer"},) * text.num_hidden_layers
        return Form(text.model_type, True, layers, config)
    whole = "shell" not in fields and not fields.get("state")
    return Form(text.model_type, False, tuple(fields["layers"]), config, whole)
