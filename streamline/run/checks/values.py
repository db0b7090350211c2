"""Values that pydantic would take for something else: switches for numbers, what is no text.

Example::

    wrong_values({"limit": True}, RunConfig)     # ["limit: input should be a number, not ..."]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from streamline.run.checks.errors import given, model_in

__all__ = [
    "at_home", "contradiction", "device_name", "distinct", "folder_of_its_own", "is_text",
    "one_folder_each", "one_revision_each", "size_of", "wrong_values",
]  # fmt: skip

_LONGEST_NAME = 255  # bytes of a file's name on the usual systems


def wrong_values(values: Mapping[str, Any], model: type[BaseModel], within: str = "") -> list[str]:
    """Errors of values that have another type than they seem.

    Args:
        values: Fields of a model as given; what is no field is left to the model.
        model: The model.
        within: Where the values stand, as the beginning of their names.

    Returns:
        A sentence for each true or false in the place of a number, and for each text that no
        file can hold.
    """
    found: list[str] = []
    for name, value in values.items():
        if name not in model.model_fields:
            continue
        annotation, place = model.model_fields[name].annotation, f"{within}{name}"
        block = model_in(annotation)
        if block is not None and isinstance(value, Mapping):
            # A block, or a mapping of names to blocks.
            several = {key: own for key, own in value.items() if isinstance(own, Mapping)}
            if dict in _types(annotation):
                for key, own in several.items():
                    found += wrong_values(own, block, f"{place}.{key}.")
            else:
                found += wrong_values(value, block, f"{place}.")
            continue
        types = _types(annotation)
        for item in _leaves(value):
            if isinstance(item, bool) and bool not in types and {int, float} & types:
                reason = "input should be a number, not true or false"
            elif isinstance(item, (str, Path)) and not is_text(str(item)):
                reason = "input should be text in UTF-8"
            else:
                continue
            found.append(f"{place}: {reason}{given(item)}")
    return found


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a value given twice, however it was written."""
    twice = list(dict.fromkeys(str(item) for item in values if values.count(item) > 1))
    if twice:
        raise ValueError(f"{', '.join(twice)} given twice")
    return values


def at_home(value: Any) -> Any:
    """A path with its ``~`` written out."""
    return str(Path(value).expanduser()) if isinstance(value, str) else value


def device_name(name: str) -> str:
    """Refuse what cannot name a device; whether it is there is found out on the machine."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise ValueError("use auto, cpu, mps, cuda, or cuda:N for the N-th")
    return name


def one_folder_each(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a folder that two names stand for, such as ``m`` and ``./m/``."""
    places: dict[Path, str] = {}
    for name in names:
        path = Path(name).expanduser()
        if not path.is_dir():
            continue
        other = places.setdefault(path.resolve(), name)
        if other != name:
            raise ValueError(f"{other} and {name} are one folder; give it once")
    return names


def one_revision_each(names: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse what names no revision of a data set, and a second one of the same."""
    found: dict[str, str] = {}
    for name in names:
        repository, _, revision = name.partition("@")
        if not repository or not revision:
            raise ValueError(f"{name} names no revision; write ORG/NAME@REVISION")
        if found.setdefault(repository, revision) != revision:
            raise ValueError(f"{repository} is to be read at {found[repository]} and {revision}")
    return names


def folder_of_its_own(value: Any) -> Any:
    """A place for a run's folder, its ``~`` written out.

    Raises:
        ValueError: If it is no name, the root of the disk, below a file, or too long for a name.
    """
    if not isinstance(value, (str, Path)):
        return value
    path = Path(value).expanduser()
    if not str(value).strip() or path.resolve() == Path(path.resolve().anchor):
        raise ValueError("give a folder that is the run's own, such as out/run")
    if any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in path.parts):
        raise ValueError(f"the name is too long: {_LONGEST_NAME} bytes are the most")
    file = next((place for place in (path, *path.parents) if place.is_file()), None)
    if file is not None:
        raise ValueError(f"{file} is a file; a run writes a folder")
    return str(path) if isinstance(value, str) else path


def _types(annotation: Any) -> set[type]:
    """The plain types that an annotation is made of."""
    found = {annotation} if isinstance(annotation, type) else set()
    origin = getattr(annotation, "__origin__", None)
    found |= {origin} if isinstance(origin, type) else set()
    for part in get_args(annotation):
        found |= _types(part)
    return found


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def is_text(value: str) -> bool:
    """Whether a text can be written to a file and name one: no half of a surrogate pair, no NUL."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def shard_name(text: str) -> str:
    """Refuse what names no shard.

    Raises:
        ValueError: If it is not one of some parts.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match.group(1)) <= int(match.group(2)):
        raise ValueError("write I/N, the I-th of N parts counted from 1, such as 1/8 or 8/8")
    return f"{int(match.group(1))}/{int(match.group(2))}"


def size_of(value: Any) -> Any:
    """Bytes from a text such as ``24GiB``, ``80 GB`` or ``512MiB``; a number stays.

    Raises:
        ValueError: If the text is no size.
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])(i?)B", value.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"a size is a number and a unit, such as 24GiB or 80GB, got {value!r}")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** (1 + "KMGT".index(found[2].upper())))


def contradiction(config: Any) -> str | None:
    """Which settings of a run cannot be had together, in words, or None.

    Args:
        config: A :class:`streamline.run.config.RunConfig`.
    """
    if config.stream and config.device_map is not None:
        return (
            "stream reads one layer at a time onto one device, and device_map spreads the whole "
            "model over many; give one of the two"
        )
    if config.save == "best" and not config.perplexity.n_tokens:
        return "save=best goes by held-out perplexity, and none is to be measured"
    if config.plan_for and not config.dry_run:
        return "plan_for says which card a run is planned for, and runs nothing; give dry_run too"
    if config.plan_for and config.device not in ("auto", "cuda"):
        return f"plan_for means one accelerator, and device is {config.device}; leave device out"
    if config.shard and config.executor != "local":
        return (
            f"shard is one process's part of the cells, and executor {config.executor} divides "
            "them itself; give one of the two"
        )
    if config.shard and config.save:
        return (
            "save goes by all cells, and shard does some of them; give --save to the same command "
            "without --shard when the shards are put together: it finds them done"
        )
    return None
