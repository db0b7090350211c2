"""Instructions with answers, for training on the answers alone.

Sources: ``alpaca`` (yahma/alpaca-cleaned on the hub), or a local ``.jsonl`` file whose lines are
objects with ``instruction``, ``output`` and perhaps ``input``.

Example::

    train, held_out = load_examples("alpaca", [100_000, 8_192], tokenizer=tokenizer, seed=0)
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from streamline.errors import AssetError, ConfigError
from streamline.sources.hub.rows import load_rows

__all__ = ["HUB_EXAMPLES", "Example", "is_instructions", "load_examples", "prompt_text"]

Example = dict[str, str]

HUB_EXAMPLES = {"alpaca": "yahma/alpaca-cleaned"}
"""Short name -> repository on the hub with a train split of such rows."""

_ALONE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request."
)
_FIELDS = ("instruction", "input", "output")


def is_instructions(spec: str) -> bool:
    """Whether a text is made of instructions with answers, by its name or its first line."""
    if spec in HUB_EXAMPLES:
        return True
    path = Path(spec).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    try:
        with path.open(encoding="utf-8") as lines:
            first = next((line for line in lines if line.strip()), "")
        row = json.loads(first) if first else None
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "instruction" in row and "output" in row


def prompt_text(example: Mapping[str, str]) -> str:
    """The text before the answer of one example: Stanford Alpaca's prompt.

    LLM-Pruner, Shortened LLaMA and SliceGPT train on Alpaca in this form.

    Raises:
        ConfigError: If it has no instruction or no output.

    Reference:
        Stanford Alpaca, github.com/tatsu-lab/stanford_alpaca, "Data Release".
    """
    if not example.get("instruction") or "output" not in example:
        raise ConfigError(
            f"an example needs 'instruction' and 'output' (and may have 'input'), got the fields "
            f"{sorted(example)}"
        )
    given = f"### Input:\n{example['input']}\n\n" if example.get("input") else ""
    opening = _WITH_INPUT if given else _ALONE
    return f"{opening}\n\n### Instruction:\n{example['instruction']}\n\n{given}### Response:\n"


def load_examples(
    spec: str,
    n_tokens: Sequence[int],
    *,
    n_examples: int | None = None,
    tokenizer: Any,
    seed: int,
    revisions: Mapping[str, str | None] | None = None,
) -> list[list[Example]]:
    """Examples in an order fixed by the seed, split into parts that have none in common.

    Args:
        spec: A source as in the module's docstring.
        n_tokens: Tokens wanted in each part, prompts and answers together. 0 gives an empty part.
            The first part may be smaller if there are no more examples.
        n_examples: Examples of the first part, in place of its tokens.
        tokenizer: Counts the tokens.
        seed: Order of the examples.
        revisions: Commits of repositories on the hub; of others the main branch is read.

    Returns:
        One list for each part, with the fields ``instruction``, ``input`` and ``output``.

    Raises:
        ConfigError: If there are too few examples for every part.
        AssetError: If the source cannot be read.
    """
    rows = _hub(spec, revisions) if spec in HUB_EXAMPLES else _local(Path(spec).expanduser())
    random.Random(seed).shuffle(rows)
    parts: list[list[Example]] = [[] for _ in n_tokens]
    remaining = iter(rows)
    for index in reversed(range(len(n_tokens))):  # held-out parts come first
        if index == 0 and n_examples is not None:
            parts[0] = list(islice(remaining, n_examples))
            if len(parts[0]) < n_examples:
                raise ConfigError(
                    f"{n_examples} examples of {spec!r} are needed and it has {len(parts[0])} "
                    "beside those kept apart: ask for fewer, or give more examples"
                )
            break
        count = 0
        while count < n_tokens[index]:
            row = next(remaining, None)
            if row is None:
                break
            parts[index].append(row)
            count += len(tokenizer(prompt_text(row) + row["output"]).input_ids)
    if any(wanted and not part for wanted, part in zip(n_tokens, parts, strict=True)):
        raise ConfigError(
            f"{spec!r} has {len(rows)} examples, too few for parts of {list(n_tokens)} tokens; ask "
            "for fewer, or give more examples"
        )
    return parts


def _hub(name: str, revisions: Mapping[str, str | None] | None) -> list[Example]:
    repository = HUB_EXAMPLES[name]
    revision = (revisions or {}).get(repository)
    needed = ("instruction", "output")
    rows = load_rows(repository, split="train", revision=revision, columns=needed)
    return [_example(row, name) for row in rows]


def _local(path: Path) -> list[Example]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise AssetError(f"{path} is not UTF-8 text: {error}.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except RecursionError:
                raise AssetError(
                    f"{path}, line {number} is not JSON: it is nested too deeply."
                ) from None
            except ValueError as error:
                raise AssetError(f"{path}, line {number} is not JSON: {error}.") from error
            found.append(_example(row, f"{path}, line {number}"))
    return found


def _example(row: Any, location: str) -> Example:
    """The fields that matter, as text."""
    values = {name: row.get(name) or "" for name in _FIELDS} if isinstance(row, dict) else {}
    if not all(isinstance(value, str) for value in values.values()) or not values.get("output"):
        raise AssetError(
            f"{location}: an example needs 'instruction' and 'output' with text (and may have "
            '\'input\'), like {"instruction": "Add 2 and 3.", "output": "5"}.'
        )
    if not values["instruction"]:
        raise AssetError(f"{location}: the example has no 'instruction'.")
    return values
