"""What the functions of the public face accept, checked before any work is done."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from streamline.api.pruned_model import PrunedModel
from streamline.engine.budget import check_sparsity
from streamline.errors import ConfigError
from streamline.method import Method
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.lora_recipe import LoraSettings
from streamline.training.student import Recipe

if TYPE_CHECKING:
    AnyModel = PreTrainedModel | PrunedModel

__all__ = ["check_pruning", "check_questions", "check_texts", "named_models"]


def named_models(
    models: Mapping[str, AnyModel] | AnyModel, reference: str | None
) -> tuple[dict[str, AnyModel], str]:
    """Models by name, and the name of the one that all are measured against.

    Args:
        models: A mapping, or one model.
        reference: A name; None for ``dense`` if there is one, else the first.

    Raises:
        ConfigError: If there is no model, one is none, or none has the reference's name.
    """
    if isinstance(models, Mapping):
        named = dict(models)
    elif isinstance(models, PrunedModel):
        named = {models.name: models}
    else:
        config = getattr(models, "config", None)
        named = {Path(str(getattr(config, "name_or_path", "") or "model")).name: models}
    if not named:
        raise ConfigError("no model to evaluate: give one, or a mapping of names to models")
    for name, model in named.items():
        if not isinstance(model, (PreTrainedModel, PrunedModel)):
            raise ConfigError(
                f"{name!r} is {_kind(model)}: give a loaded transformers model or what prune "
                "returned, several as a mapping of names to models"
            )
    against = reference or ("dense" if "dense" in named else next(iter(named)))
    if against not in named:
        raise ConfigError(
            f"the reference {against!r} is none of the models {', '.join(named)}: give reference= "
            "one of their names"
        )
    return named, against


def check_questions(
    tasks: str | Sequence[str],
    limit: int | None,
    perplexity: int,
    data_dir: str | Path | None,
    include_path: str | Path | None,
    efficiency: str = "off",
) -> None:
    """Refuse what cannot be asked.

    Raises:
        ConfigError: If there is no task and no text, a number is out of range, or a folder is not
            there.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if not any(name.strip(" ,") for name in names) and not perplexity:
        raise ConfigError("nothing to evaluate: name tasks, or ask for a perplexity in tokens")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, or None for all questions; got {limit}")
    if perplexity < 0:
        raise ConfigError(f"perplexity is a number of tokens, 0 for none; got {perplexity}")
    if efficiency not in ("off", "quick", "full"):
        raise ConfigError(f"efficiency must be off, quick or full; got {efficiency!r}")
    for name, folder in (("data_dir", data_dir), ("include_path", include_path)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"{name} must be a folder; there is none at {folder}")


def check_texts(n_samples: int, length: int) -> None:
    """Refuse calibration text of no tokens.

    Raises:
        ConfigError: If a number is out of range.
    """
    if n_samples < 1 or length < 2:
        raise ConfigError(
            f"calibration needs n_samples >= 1 and length >= 2, got {n_samples} and {length}"
        )


def check_pruning(method: Any, sparsity: Any, train: Any, lora: Any, kd: Any) -> None:
    """Refuse what is no method, no sparsity or no recipe.

    Raises:
        ConfigError: If one of them is of the wrong kind, or the sparsity is outside [0, 1).
    """
    if not isinstance(method, (str, Method)):
        hint = "; make one of it, as method()" if isinstance(method, type) else ""
        raise ConfigError(f"method must be a name or a method, got {_kind(method)}{hint}")
    if not isinstance(sparsity, numbers.Real) or isinstance(sparsity, bool):
        raise ConfigError(f"sparsity must be a number in [0, 1), got {sparsity!r}")
    check_sparsity(float(sparsity))
    stages = [
        ("train", train, Recipe),
        ("lora", lora, LoraSettings),
        ("kd", kd, DistillationSettings),
    ]
    for name, value, kind in stages:
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{name} must be a {kind.__name__} or None, got {value!r}")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
