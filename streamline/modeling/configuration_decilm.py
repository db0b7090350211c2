"""The config of models whose blocks differ, as serving engines read it (``nemotron-nas``).

This file stands alone and is copied into folders of that format: an engine reads ``config.json``
with it (``trust_remote_code``) and builds each block after ``block_configs``. An attention or MLP
whose ``no_op`` is true is not there.

Example:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config.block_configs[3].attention.no_op
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig


class Fields(dict):  # type: ignore[type-arg]
    """A JSON object whose fields are attributes too."""

    def __getattr__(self, name: str) -> Any:
        """A field; a missing one is no attribute."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """Llama's config with a description of each block.

    Attributes:
        block_configs: For each block ``attention`` (``no_op``, ``n_heads_in_group``) and ``ffn``
            (``no_op``, ``ffn_mult``).
    """

    model_type = "nemotron-nas"

    block_configs: list | None = None  # type: ignore[type-arg]

    def __post_init__(self, **kwargs: Any) -> None:
        """Give the fields of each block their attributes."""
        self.block_configs = [
            Fields({part: Fields(fields) for part, fields in block.items()})
            for block in self.block_configs or []
        ]
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
