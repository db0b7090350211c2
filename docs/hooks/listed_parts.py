"""Parts of pages that list what there is: commands, models, families, suites, LoRA presets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from words import plain, table


def commands(_: str) -> str:
    """Every verb with its arguments, flags and examples."""
    import typer

    from streamline.cli.main import app

    root = typer.main.get_command(app)
    text = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        if inner is None:
            text.append(_command(name, command))
        for below, one in (inner or {}).items():
            text.append(_command(f"{name} {below}", one))
    return "\n".join(text)


def _command(name: str, command: Any) -> str:
    from click import Argument

    rows = []
    for option in command.params:
        if option.name == "help" or getattr(option, "hidden", False):
            continue
        if isinstance(option, Argument):
            names = f"`{(option.metavar or option.name or '').upper()}`"
        else:
            names = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
        rows.append(
            (
                names,
                re.sub(
                    r"(?<!`)\b([A-Z]+(?:[+@=,][A-Z]+)+)\b(?!`)",
                    r"`\1`",
                    getattr(option, "help", "") or "",
                ),
            )
        )
    text = [f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
    if rows:
        text.append(table(("argument or flag", "what it is"), rows))
    if command.epilog:
        text.append(inspect.cleandoc(command.epilog) + "\n")
    return "\n".join(text)


def models(_: str) -> str:
    """The aliases, with what they mean."""
    from streamline.sources.model_table import MODEL_TABLE
    from streamline.sources.models import MODELS

    rows = []
    for name, source in MODELS.items():
        row = MODEL_TABLE[name]
        layers = row.shape.get("num_hidden_layers")
        rows.append((f"`{name}`", str(source), row.model_type or "", str(layers or "")))
    return table(("alias", "what is fetched", "family", "layers"), rows)


def families(_: str) -> str:
    """The architectures that the engine knows."""
    from streamline.engine.families import FAMILIES

    return ", ".join(f"`{name}`" for name in FAMILIES) + ".\n"


def suites(_: str) -> str:
    """Every suite: what it runs, what it needs and what it makes."""
    from streamline.run.config import build_config
    from streamline.run.suites import load_suite, suite_files

    text = []
    for name in suite_files():
        suite, config = load_suite(name), build_config({}, suite=name)
        own = [config.for_model(model) for model in config.models]
        texts = sorted(
            {one.calibration.texts for one in own}
            | {one.training.texts or one.calibration.texts for one in own}
        )
        rows = [
            ("models", ", ".join(f"`{model}`" for model in config.models)),
            ("methods", ", ".join(f"`{method}`" for method in config.methods)),
            ("sparsities", ", ".join(f"{value:g}" for value in _sparsities(config, own))),
            ("tasks", ", ".join(f"`{task}`" for task in config.tasks)),
            ("texts", ", ".join(f"`{one}`" for one in texts)),
            ("training", ", ".join(dict.fromkeys(_amount(one.training) for one in own))),
            ("number format", ", ".join(dict.fromkeys(one.dtype for one in own))),
            ("cells", str(_n_cells(config))),
        ]
        if layout := suite.report.get("layout"):
            rows.append(("beside", f"`reports/published/{layout['published']}.csv`"))
        text += [f"### {name}", "", suite.title + ". " + suite.description, ""]
        text += [table(("", f"`--suite {name}`"), rows)]
    return "\n".join(text)


def _amount(training: Any) -> str:
    """What a training is on, and how often."""
    if training.n_documents is not None:
        return f"{training.n_documents:,} documents, {training.epochs} x"
    if training.n_tokens == "auto":
        return "auto"
    return f"{training.n_tokens:,} tokens, {training.epochs} x"


def _sparsities(config: Any, own: Sequence[Any]) -> list[float]:
    found = {value for one in own for value in one.sparsities}
    for one in own:
        for method in one.per_method.values():
            found |= set(method.sparsities or ())
    return sorted(found)


def _n_cells(config: Any) -> int:
    from streamline.run.cell import expand

    return sum(len(expand(config.for_model(model), model)) for model in config.models)


def cards(_: str) -> str:
    """The accelerators that a run can be planned for."""
    from streamline.run.planning.cards import CARDS

    head = ("card", "float16", "bfloat16", "float32", "GB/s", "GiB")
    rows = [
        (
            f"`{name}`",
            *(plain(rate) for rate in (one.half, one.brain, one.single)),
            plain(one.bandwidth),
            plain(one.gib),
        )
        for name, one in CARDS.items()
    ]
    return table(head, rows)


def lora_presets(_: str) -> str:
    """The named recipes of LoRA fine-tuning."""
    from streamline.training.lora_recipe import PRESETS

    fields = (
        "rank",
        "alpha",
        "dropout",
        "targets",
        "learning_rate",
        "shape",
        "batch",
        "length",
        "epochs",
        "max_steps",
    )
    rows = [
        (f"`{name}`", *(plain(getattr(one, f)) for f in fields)) for name, one in PRESETS.items()
    ]
    return table(("preset", *(f.replace("_", " ") for f in fields)), rows)
