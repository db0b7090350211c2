"""What a trained replacement is held against: the same layers dropped, with nothing in their place.

A training's own loss does not tell: on hidden states a network can be well below the loss of
leaving the span out and make a model that reads worse. So the held-out text decides.

Example::

    dropped_perplexities(model, variants)
    # {"…llm-streamline-ffn…": {"text": "heldout", "perplexity": 70.1}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from streamline.api.variants import Variant
from streamline.errors import NotFiniteError
from streamline.evaluation.evaluate import evaluate
from streamline.evaluation.questions import heldout_name
from streamline.hashing import content_key, program
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.run.one_model import OneModel

__all__ = ["Dropped", "dropped_perplexities"]

#: ``text``, its name, and ``perplexity`` where a variant's layers are dropped.
Dropped = Mapping[str, Any]


def dropped_perplexities(model: OneModel, variants: Sequence[Variant]) -> dict[str, Dropped]:
    """The held-out perplexity of each trained variant's layers dropped untouched.

    All are read in one pass that shares their layers; what was read before is kept.

    Args:
        model: What the cells share.
        variants: Of them those count that were trained and share the dense model's layers.

    Returns:
        By the variants' labels; without those whose model overflows, and empty where no held-out
        text is read.
    """
    name = heldout_name(model.config.perplexity.texts)
    texts = tuple(text for text in model.questions.texts if text.name == name)
    trained = [v for v in variants if v.training and not (v.pruned.model or v.pruned.changed)]
    if not texts or not trained:
        return {}
    decoder, keys, paths = model.dense.decoder, dict[str, str](), {}
    for variant in trained:
        layers = variant.pruned.plan.removed_layers
        known = [*program(), model.dense.fingerprint, layers, str(decoder.dtype)]
        key = content_key(["dropped", *known])
        keys[variant.target.label] = key
        paths[key] = Pruned(Plan.drop(decoder.n_layers, layers)).path(decoder, "dropped")
    found = evaluate(
        paths,
        replace(model.questions, entries=(), parts=(), texts=texts),
        model.dense.tokenizer,
        model.store,
        batch_tokens=model.budget,
        compiled=model.config.compile,
    )
    values = {
        key: result.perplexity[name]["value"]
        for key, result in found.items()
        if not isinstance(result, NotFiniteError)
    }
    return {
        label: {"text": name, "perplexity": values[key]}
        for label, key in keys.items()
        if key in values
    }
