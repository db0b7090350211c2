"""Suites: benchmark runs kept as data, each a YAML file with only what differs from the defaults.

A suite's keys are the fields of :class:`streamline.run.config.RunConfig`, and three that describe
it: ``title`` (one line), ``description`` (some sentences) and ``report`` (a mapping for whoever
renders the results, such as the published tables to set beside them).

Example::

    title: The embedded default
    models: smollm2-135m-instruct
    methods: all
    sparsities: [0.10, 0.25]
    limit: 100
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streamline.errors import ConfigError, unknown_name
from streamline.registry import SUITES, folders
from streamline.run.checks.yaml_file import read_yaml

__all__ = ["COMMAND_LINE", "Suite", "as_suite", "load_suite", "suite_files"]

#: What only the command line may give: the run itself, and trust in other people's code.
COMMAND_LINE = ("suite", "dry_run", "trust_remote_code", "confirm_run_unsafe_code")
_DESCRIBING = ("title", "description", "report")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A suite file, read but not yet checked against the run's fields.

    Attributes:
        name: The file's name without its ending.
        path: Where it lies.
        title: One line.
        description: Some sentences, or empty.
        report: What the report wants to know about it.
        settings: Fields of a run that differ from the defaults.
    """

    name: str
    path: Path
    title: str
    description: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def suite_files() -> dict[str, Path]:
    """Every installed suite: name to YAML file, sorted by name.

    Raises:
        ConfigError: If two packages bring a suite of the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders(SUITES).values():
        for path in sorted(folder.glob("*.yaml")):
            if path.stem in found:
                raise ConfigError(
                    f"the suite {path.stem!r} exists twice: {found[path.stem]} and {path}; "
                    "rename one, or give the path of the file you mean"
                )
            found[path.stem] = path
    return dict(sorted(found.items()))


def load_suite(name: str) -> Suite:
    """Read a suite.

    Args:
        name: Name of an installed suite, or path of a YAML file.

    Raises:
        UnknownNameError: If there is no such suite and no such file.
        ConfigError: If the file is not a YAML mapping, or sets what only the command line may,
            such as ``dry_run`` or ``trust_remote_code``.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        files = suite_files()
        if name not in files:
            raise unknown_name("suite", name, files)
        path = files[name]
    elif not path.is_file():
        raise unknown_name("suite file", name, suite_files())
    content = read_yaml(path)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(
            f"the suite {path} must be a mapping of a run's fields, such as `models: opt-1.3b`, "
            f"got {type(content).__name__ if content is not None else 'an empty file'}"
        )
    for key in COMMAND_LINE:
        if key in content:
            raise ConfigError(
                f"the suite {path} cannot set {key!r}; it belongs on the command line"
            )
    report = content.get("report", {})
    if not isinstance(report, dict):
        raise ConfigError(f"the suite {path}: report must be a mapping, got {report!r}")
    return Suite(
        name=path.stem,
        path=path,
        title=str(content.get("title", path.stem)),
        description=str(content.get("description", "")).strip(),
        report=report,
        settings={key: value for key, value in content.items() if key not in _DESCRIBING},
    )


def as_suite(fields: Mapping[str, Any], suite: str | None = None) -> str:
    """A run as the YAML of a suite.

    Args:
        fields: The run's fields as plain values; what a suite may not set is left out.
        suite: The suite that it came from, whose title, description and report are kept.

    Returns:
        A text that :func:`load_suite` reads.
    """
    import yaml

    words: dict[str, Any] = {}
    if suite is not None:
        found = load_suite(suite)
        words = {"title": found.title, "description": found.description, "report": found.report}
    content = {name: value for name, value in words.items() if value}
    content |= {name: value for name, value in fields.items() if name not in COMMAND_LINE}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=96))
