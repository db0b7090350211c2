"""Answers that are numbers: what is NaN or infinite is named, by question and layer, not kept.

Example::

    require_likelihoods(part, answers, path)        # raises NotFiniteError
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from streamline.engine.finite import not_finite
from streamline.engine.paths import Path
from streamline.errors import NotFiniteError
from streamline.evaluation.part import Part
from streamline.evaluation.scoring.perplexity import Perplexity
from streamline.evaluation.scoring.score import Likelihoods

__all__ = ["finite_logits", "require_likelihoods", "require_perplexity"]


def require_likelihoods(part: Part, answers: Likelihoods, path: Path) -> None:
    """Refuse log-likelihoods that are not finite.

    Args:
        part: What was asked.
        answers: In the order of its requests.
        path: What answered.

    Raises:
        NotFiniteError: With the question, the option and the layer.
    """
    broken = np.flatnonzero(~np.isfinite(answers.loglikelihood))
    if not len(broken):
        return
    request = part.requests[int(broken[0])]
    more = f" (the first of {len(broken)})" if len(broken) > 1 else ""
    what = f"option {request.option} of question {request.doc_id}{more}"
    tokens = torch.tensor([request.inputs])
    raise not_finite(f"{part.name}: the log-likelihood of {what}", path, [tokens])


def require_perplexity(name: str, windows: torch.Tensor, result: Perplexity, path: Path) -> None:
    """Refuse a perplexity that is not finite.

    Args:
        name: The text.
        windows: Its token ids, [N, T].
        result: What was measured.
        path: What measured it.

    Raises:
        NotFiniteError: With the window and the layer.
    """
    if not math.isfinite(result.mean_nll):
        raise not_finite(f"{name}: the loss of window {{}}", path, torch.split(windows, 1))
    if not math.isfinite(result.value):
        raise NotFiniteError(
            f"{name}: a mean loss of {result.mean_nll:,.0f} nats has no finite perplexity; the "
            "model's logits are far out of range, so no figure can be made of it"
        )


@contextmanager
def finite_logits(model: nn.Module, name: str) -> Iterator[None]:
    """Refuse logits of a whole model's last position that are not finite, for a while.

    Args:
        model: A Hugging Face model.
        name: What it answers.

    Raises:
        NotFiniteError: When the model gives such logits.
    """

    def check(_module: nn.Module, _given: Any, out: Any) -> None:
        if not bool(out.logits[:, -1].amax(-1).isfinite().all()):
            raise NotFiniteError(
                f"{name}: the logits of a generated token are not finite; a float16 model may "
                "overflow: take bfloat16 (--dtype bfloat16)"
            )

    handle = model.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()
