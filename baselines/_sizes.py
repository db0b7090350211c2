"""Families of released models in several sizes, and which of them are smaller than a given one.

Add a family by adding a row of short names, largest first, that share a tokenizer.

Example:
    smaller_releases("facebook/opt-6.7b")     # ("opt-2.7b", "opt-1.3b", "opt-350m", "opt-125m")
"""

from __future__ import annotations

from streamline.sources.model_table import MODEL_TABLE

#: Short names of :data:`streamline.sources.model_table.MODEL_TABLE`, largest first.
LADDERS: tuple[tuple[str, ...], ...] = (
    ("opt-13b", "opt-6.7b", "opt-2.7b", "opt-1.3b", "opt-350m", "opt-125m"),
    (
        "pythia-12b",
        "pythia-6.9b",
        "pythia-2.8b",
        "pythia-1.4b",
        "pythia-1b",
        "pythia-410m",
        "pythia-160m",
        "pythia-70m",
    ),
    ("llama2-70b", "llama2-13b", "llama2-7b"),
    ("llama3-8b", "llama3.2-3b", "llama3.2-1b"),
    ("llama3.1-8b", "llama3.2-3b", "llama3.2-1b"),
    ("qwen2.5-7b", "qwen2.5-3b", "qwen2.5-1.5b", "qwen2.5-0.5b"),
    ("qwen3-8b", "qwen3-4b", "qwen3-1.7b", "qwen3-0.6b"),
    ("smollm2-1.7b-instruct", "smollm2-360m-instruct", "smollm2-135m-instruct"),
)


def smaller_releases(name: str) -> tuple[str, ...] | None:
    """The smaller models of a model's family, largest first.

    Args:
        name: A short name or a hub id.

    Returns:
        Their short names, none for the smallest of a family; None if the family is not known.
    """
    aliases = {row.hub_id: alias for alias, row in MODEL_TABLE.items() if row.hub_id}
    alias = aliases.get(name, name)
    for ladder in LADDERS:
        if alias in ladder:
            return ladder[ladder.index(alias) + 1 :]
    return None
