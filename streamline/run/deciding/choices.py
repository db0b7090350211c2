"""What each setting that is left open becomes, and why.

* **dtype**: the checkpoint's own format on an accelerator, float32 on a CPU.
* **Texts**: one text for all methods of a run, so that what they are compared on is the same:
  SlimPajama-6B in LLM-Streamline's mixture to calibrate and train on, WikiText-2 for perplexity,
  where the hub answers; the packaged text elsewhere. The suites of a paper's tables name its own.
* **Training**: what is stated for the model or one of its size, on a GPU; else a trial.

Example::

    choose(config.for_model("llama2-7b"), "llama2-7b", {})["dtype"]     # {"value": ..., "why": ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from streamline.errors import StreamlineError
from streamline.run.config import RunConfig
from streamline.run.deciding.budgets import LARGE_BUDGET, Budget, stated_for
from streamline.run.deciding.formats import device_kind, stored_dtype
from streamline.run.stage_config import TRAINING_AUTO
from streamline.sources.hub.commits import dataset_commit
from streamline.sources.hub.failures import hub_problem
from streamline.sources.models import load_config, planned_model, resolve_model
from streamline.sources.packaged import DOMAINS
from streamline.sources.texts import REPOSITORIES, TEXTS, split_of, text_files
from streamline.training.student import Recipe

__all__ = ["Choices", "choose"]

#: Setting -> its value and why it is that.
Choices = dict[str, dict[str, Any]]

_CALIBRATION, _PERPLEXITY = "slimpajama", "wikitext2"
_PACKAGED, _HELDOUT = "packaged", "packaged:heldout"
_SHORT, _LONG = 512, 2_048  # tokens of a sequence on a CPU, and as papers have them
#: Training tokens that a text surely has, whatever the tokenizer; of others there are enough.
_HOLDS = {
    "packaged": 400_000,
    "packaged:books": 230_000,
    "packaged:wikipedia": 95_000,
    "packaged:arxiv": 900_000,
    "packaged:sports-history": 60_000,
    "packaged:news": 22_000,
    "packaged:stories": 15_000,
    "wikitext2": 2_000_000,
}
_BYTES_OF_A_TOKEN = 6  # at most, of a file's text


def choose(own: RunConfig, model: str, known: Mapping[str, Mapping[str, Any]]) -> Choices:
    """Decide every setting that may be left open.

    Args:
        own: The run, as the model has it.
        model: The model.
        known: What was decided before and stays, which other decisions go by.

    Returns:
        All that the run leaves open; others are of no use.
    """
    kind = _kind(own)
    asked = own.model_dump(mode="json")
    found: Choices = {}

    def given(block: str, field: str) -> Any:
        """A setting as the run has it, or as it was decided."""
        path = f"{block}.{field}"
        value = asked[block][field]
        return known.get(path, found.get(path, {})).get("value") if value == "auto" else value

    found["dtype"] = _dtype(own, model, kind)
    if None in (given("calibration", "texts"), given("perplexity", "texts")):
        found |= _texts(own, model)  # only then is the hub asked
    length = partial(_length, own, model, kind)
    for block in ("calibration", "perplexity"):
        found[f"{block}.length"] = length(given(block, "texts"))
    text = own.training.texts or given("calibration", "texts")
    found |= _training(own, model, kind, text, length(text))
    return found


def _choice(value: Any, why: str) -> dict[str, Any]:
    return {"value": value, "why": why}


def _kind(own: RunConfig) -> str:
    """The kind of device that the cells will have: a job that asks for GPUs gets them."""
    if own.plan_for is not None:
        return "cuda"
    asked = own.slurm.items() if own.executor == "slurm" and own.device == "auto" else ()
    if any("gpus" in name and n or "gres" in name and "gpu" in str(n) for name, n in asked):
        return "cuda"
    return device_kind(own.device)


def _on_cpu(own: RunConfig) -> str:
    here = own.executor == "local" or own.device != "auto"
    return "on a CPU" if here else "on a CPU, as here; --device names that of other machines"


def _dtype(own: RunConfig, model: str, kind: str) -> dict[str, Any]:
    if kind == "cpu":
        return _choice("float32", _on_cpu(own))
    stored = stored_dtype(model)
    if stored is None:
        return _choice("float32", "its config names no format")
    return _choice(stored, "the checkpoint's own format")


def _texts(own: RunConfig, model: str) -> Choices:
    """The texts of a run: from the hub, if it answers for both of them."""
    why = _why_packaged(own, model)
    if why is not None:
        texts = {"calibration.texts": _PACKAGED, "perplexity.texts": _HELDOUT}
        return {path: _choice(text, why) for path, text in texts.items()}
    return {
        "calibration.texts": _choice(
            _CALIBRATION, "one text for all methods: LLM-Streamline's mixture of SlimPajama-6B"
        ),
        "perplexity.texts": _choice(_PERPLEXITY, "as most papers measure it"),
    }


def _why_packaged(own: RunConfig, model: str) -> str | None:
    """Why a run takes the packaged text; None where the hub has the papers' texts."""
    if resolve_model(model).kind == "wheel":
        return "the embedded model needs no hub"
    if own.data == "packaged":
        return "the questions are the packaged ones too"
    problem = hub_problem()
    if problem is not None:
        return f"the hub does not answer ({problem})"
    lacking = [
        repository
        for repository in (REPOSITORIES[_CALIBRATION], REPOSITORIES[_PERPLEXITY])
        if dataset_commit(repository, kept=True) is None
    ]
    return f"the hub does not give {' and '.join(lacking)}" if lacking else None


def _length(own: RunConfig, model: str, kind: str, text: str) -> dict[str, Any]:
    """Tokens of a sequence of a text."""
    if kind == "cpu" or _is_packaged(text):
        why = "on a CPU" if kind == "cpu" else "of the packaged text"
        return _choice(_SHORT, f"sequences {why}")
    try:
        config = load_config(model, trust_remote_code=own.trust_remote_code)
        positions = getattr(config, "max_position_embeddings", None)
    except StreamlineError:  # its cells will fail with that
        positions = None
    if isinstance(positions, int) and positions < _LONG:
        return _choice(positions, "all positions of the model")
    return _choice(_LONG, "sequences as in the papers")


def _training(
    own: RunConfig, model: str, kind: str, text: str, length: Mapping[str, Any]
) -> Choices:
    """The recipe of a training: as stated, or a trial's, which is the default of every field."""
    asked = own.training.model_dump(mode="json")
    trial, defaults = _why_trial(own, model, kind, text), Recipe().model_dump(mode="json")
    open_budget = asked["n_tokens"] == "auto"
    epochs = defaults["epochs"] if asked["epochs"] == "auto" else asked["epochs"]
    enough = open_budget or own.training.distinct_tokens * epochs >= LARGE_BUDGET
    if not enough or (open_budget and trial is not None):
        why = f"a trial's training, {trial}" if open_budget else "as suits so small a budget"
        values = defaults | {"length": length["value"]}
        if kind == "cuda" and _is_packaged(text) and resolve_model(model).kind != "wheel":
            values["n_tokens"] = _HOLDS[_PACKAGED]
    else:
        budget = _budget(own, model)
        values, why = defaults | budget.recipe, _words(model, budget)
        values["length"] = min(values["length"], length["value"])
        if not open_budget:
            why = f"the recipe of {why}"
    return {
        f"training.{name}": _choice(*_bounded(own, text, values[name], why, name))
        for name in TRAINING_AUTO
    }


def _bounded(own: RunConfig, text: str, value: Any, why: str, name: str) -> tuple[Any, str]:
    """A number of training tokens that a text has."""
    if name != "n_tokens":
        return value, why
    least = own.training.post_train.n_tokens if own.training.post_train else None
    value, most = max(value, least or 0), _holds(text)
    if most is None or value <= most:
        return value, why
    return most, f"what {text} surely holds, of {why}"


def _why_trial(own: RunConfig, model: str, kind: str, text: str) -> str | None:
    """Why a training is a trial; None for one as papers state it."""
    if resolve_model(model).kind == "wheel":
        return "of the embedded model"
    if kind != "cuda":
        return _on_cpu(own) if kind == "cpu" else f"on {kind}"
    return "since the packaged text is small" if _is_packaged(text) else None


def _budget(own: RunConfig, model: str) -> Budget:
    """The stated budget for a model."""
    try:
        planned = planned_model(model, trust_remote_code=own.trust_remote_code)
        n_parameters = sum(one.numel() for one in planned.parameters())
    except StreamlineError:  # its cells will fail with that
        n_parameters = None
    return stated_for(model, n_parameters)


def _words(model: str, budget: Budget) -> str:
    near = "" if budget.model == model else f" (no budget is stated for one nearer to {model})"
    return f"{budget.words}{near}"


def _is_packaged(text: str) -> bool:
    return split_of(text)[0] in (_PACKAGED, *DOMAINS)


def _holds(text: str) -> int | None:
    """Training tokens that a text surely has; None for enough."""
    name = split_of(text)[0]
    if name in TEXTS:
        return _HOLDS.get(name)
    size = sum(Path(file).stat().st_size for file in text_files(name))
    return max(1, int(0.8 * size / _BYTES_OF_A_TOKEN))
