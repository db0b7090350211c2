"""Names of methods, task folders and suite folders, looked up lazily by entry point.

Installed packages announce what they add in three entry-point groups. Nothing is imported until
a name is looked up, so listing names is cheap and a broken plugin harms only itself.

| group | a name means |
|---|---|
| ``streamline.methods`` | a class derived from :class:`streamline.method.Method` |
| ``streamline.tasks`` | a package whose folder holds lm-eval YAML |
| ``streamline.suites`` | a package whose folder holds suite YAML |

A name of the form ``pkg.module:Class`` needs no entry point: it is imported from the path. A
method spec is a name with some of the method's fields set: ``llm-streamline-ffn+init=linear``. The
whole spec is the method's label in records and tables, so an ablation is distinguished from its
parent.

Example::

    method_class = load("streamline.methods", "my_package.mine:Mine")
    method = build_method("llm-streamline-ffn+init=linear+runner_up=1")
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from streamline.errors import ConfigError, reason, unknown_name
from streamline.method_source import source_key

if TYPE_CHECKING:
    from streamline.method import Method

__all__ = [
    "METHODS",
    "SUITES",
    "TASKS",
    "available",
    "base_name",
    "build_method",
    "folders",
    "load",
    "load_method",
    "method_names",
    "method_summary",
    "source_key",
]

METHODS = "streamline.methods"
TASKS = "streamline.tasks"
SUITES = "streamline.suites"


def available(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, sorted, without importing any of them.

    Args:
        group: An entry-point group, such as :data:`METHODS`.

    Returns:
        Name to entry point. One that a distribution announces twice through the same metadata
        (an editable install seen from its own folder) counts once.

    Raises:
        ConfigError: If two distributions announce the same name; both are named.
    """
    found: dict[str, EntryPoint] = {}
    for point in sorted(_announced(entry_points, group, _places()), key=lambda point: point.name):
        other = found.get(point.name)
        if other is None:
            found[point.name] = point
        elif (_owner(other), other.value) != (_owner(point), point.value):
            raise ConfigError(
                f"the name {point.name!r} in {group} is claimed twice: by "
                f"{_owner(other)} ({other.value}) and by {_owner(point)} ({point.value}); "
                "uninstall one of them, or rename its entry point"
            )
    return found


@lru_cache(maxsize=64)
def _announced(
    read: Callable[..., EntryPoints], group: str, places: tuple[tuple[str, int], ...]
) -> tuple[EntryPoint, ...]:
    """A group's entry points, read again when a package was installed or the path has changed."""
    return tuple(read(group=group))


def _places() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when something was last put there."""
    return tuple((p, Path(p).stat().st_mtime_ns) for p in sys.path if Path(p).exists())


def load(group: str, name: str) -> Any:
    """Import what a name means.

    Args:
        group: An entry-point group, such as :data:`METHODS`.
        name: A registered name, or ``pkg.module:Class`` for code that announces nothing; the
            current folder is searched too.

    Returns:
        The object, usually a class or a package.

    Raises:
        UnknownNameError: If no such name is registered, with the nearest names and all of them.
        ConfigError: If the name is claimed twice, or importing it fails, with the reason.
    """
    if ":" in name:
        point = EntryPoint(name=name, value=name, group=group)
        if str(Path.cwd()) not in sys.path and "" not in sys.path:
            sys.path.append(str(Path.cwd()))
    else:
        points = available(group)
        if name not in points:
            raise unknown_name(group.rpartition(".")[2].rstrip("s"), name, points)
        point = points[name]
    try:
        return point.load()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a plugin does when it is imported
        raise ConfigError(
            f"{name!r} in {group} points to {point.value!r} ({_owner(point)}), which cannot be "
            f"imported: {reason(error)}"
        ) from error


def folders(group: str) -> dict[str, Path]:
    """The folders of data packages, without importing them.

    Args:
        group: :data:`TASKS` or :data:`SUITES`.

    Returns:
        Entry-point name to the package's folder.

    Raises:
        ConfigError: If a name is claimed twice, or an announced package is not there.
    """
    found: dict[str, Path] = {}
    for name, point in available(group).items():
        try:
            spec = importlib.util.find_spec(point.value)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"{name!r} in {group} points to {point.value!r} ({_owner(point)}), which is not "
                "an installed package; install it again or uninstall its distribution"
            )
        found[name] = Path(next(iter(spec.submodule_search_locations)))
    return found


def method_names(names: Iterable[str]) -> tuple[str, ...]:
    """Check names of methods and write ``all`` out, without importing any method.

    Args:
        names: Registered names or ``pkg.module:Class``, with fields set or not
            (:func:`build_method`), or ``all``, beside which names with fields may stand.

    Returns:
        The names in the order given; for ``all``, every registered one in alphabetical order but
        those that need a field first (``in_all``). What stands beside it takes the place of the
        method of its name, or is added.

    Raises:
        UnknownNameError: If a name is not registered.
        ConfigError: If ``all`` is given beside a plain name that it means already, or a name is
            claimed twice.
    """
    given = tuple(names)
    points = available(METHODS)
    for name in map(base_name, given):
        if ":" not in name and name not in points and name != "all":
            raise unknown_name("method", name, points)
    if "all" not in given:
        return given
    specs = tuple(name for name in given if name != "all")
    every = [name for name, point in points.items() if _in_all(point)]
    twice = sorted(set(specs) & set(every)) or ["all"] * (len(given) > len(specs) + 1)
    if twice:
        raise ConfigError(
            f"'all' already means every method, got {', '.join(given)}: leave {twice[0]} out, or "
            "set a field of it"
        )
    bases = {base_name(spec) for spec in specs}
    kept = [name for name in every if name not in bases]
    return tuple(sorted((*kept, *specs), key=base_name))


def load_method(name: str) -> type[Method]:
    """Import a method's class and check that it is one.

    Args:
        name: A registered name, or ``pkg.module:Class``.

    Raises:
        UnknownNameError: If no such name is registered.
        ConfigError: If it cannot be imported, is not a class derived from ``Method``, or leaves
            something abstract or without a name.
    """
    from streamline.method import Method

    found = load(METHODS, name)
    if not isinstance(found, type) or not issubclass(found, Method):
        raise ConfigError(
            f"{name!r} is {found!r}, not a class derived from streamline.method.Method"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(f"{name!r} is abstract: it does not define {missing}; write it")
    given = getattr(found, "name", None)
    if not isinstance(given, str) or not given:
        raise ConfigError(
            f"{name!r} has no name: set `name: ClassVar[str]` to a text, got {given!r}"
        )
    return found


def base_name(spec: str) -> str:
    """The method's name without the fields."""
    return spec.split("+", 1)[0]


def build_method(spec: str) -> Method:
    """Make the method that a spec describes.

    Args:
        spec: ``name`` or ``name+field=value+field=value``; values are read as YAML.

    Returns:
        The method, its other fields at their defaults. Where the method's own code fails while it
        is made, one that stands for it and fails where it is used (:class:`Unmade`), so that
        the cells of others go on.

    Raises:
        UnknownNameError: If the name is not registered.
        ConfigError: If a field does not exist, is set twice, or its value does not fit.
    """
    from streamline.method import Unmade

    name, *settings = spec.split("+")
    cls = load_method(name)
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    values: dict[str, Any] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or field not in fields:
            accepted = f"write field=value with one of {', '.join(sorted(fields))}"
            raise ConfigError(
                f"{setting!r} in {spec!r} does not set a field of {name}: "
                f"{accepted if fields else 'it has none'}"
            )
        if field in values:
            raise ConfigError(f"{field} is set twice in {spec!r}; set it once")
        values[field] = _value(cls, name, field, text)
    try:
        method = cls(**values)
        repr(method), method.calibration_key()  # every part of a run needs them
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        return Unmade(spec=spec, reason=reason(error))
    if type(method).__repr__ is object.__repr__:
        return Unmade(spec=spec, reason="its repr does not show its fields; make it a dataclass")
    return method


def _value(cls: type, name: str, field: str, text: str) -> Any:
    import yaml
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        hint = get_type_hints(cls)[field]
    except (NameError, TypeError) as error:
        raise ConfigError(
            f"{field} of {name} cannot be set from text: its annotation cannot be read ({error})"
        ) from error
    if not text.strip():
        raise ConfigError(f"{field}= of {name} has no value; write {field}=VALUE")
    try:
        value = yaml.safe_load(text)
        if isinstance(value, bool) and bool not in (hint, *get_args(hint)):
            raise ConfigError("true and false are no numbers")
        finite = None if dataclasses.is_dataclass(hint) else ConfigDict(allow_inf_nan=False)
        return TypeAdapter(hint, config=finite).validate_python(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        given = text if len(text) <= 40 else f"{text[:40]}..."
        raise ConfigError(f"{field}={given} of {name} is not accepted: {why}") from error


def method_summary(name: str) -> str | None:
    """The first line of a registered method's docstring, read from its file without importing it.

    Args:
        name: A registered name.

    Returns:
        The line without its markup, or None if the file does not hold it.
    """
    node = _class_node(available(METHODS)[name])
    if node is None:
        return None
    return (ast.get_docstring(node) or "").partition("\n")[0].replace("``", "")


def _in_all(point: EntryPoint) -> bool:
    """Whether ``all`` means a method too: unless its class sets ``in_all`` to False."""
    node = _class_node(point)
    return node is None or not any(
        isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and line.target.id == "in_all"
        and isinstance(line.value, ast.Constant)
        and line.value.value is False
        for line in node.body
    )


def _class_node(point: EntryPoint) -> ast.ClassDef | None:
    """A class as its file writes it, not imported; None if the file does not hold it."""
    try:
        spec = importlib.util.find_spec(point.module)
        if spec is None or spec.origin is None:
            return None
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
    found = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return next((node for node in found if node.name == point.attr), None)


def _owner(point: EntryPoint) -> str:
    """The distribution that announces an entry point, for messages."""
    return point.dist.name if point.dist is not None else "the command line"
