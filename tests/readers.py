"""The three readers of a model's folder: whole, layer by layer, and counted from its headers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.engine.forward import TokenJob, run
from streamline.engine.paths import dense_path
from streamline.errors import StreamlineError
from streamline.run.config import build_config
from streamline.run.planning.estimate import plan_run
from streamline.sources.models import load_model
from streamline.streaming.opening import load_streamed

__all__ = ["agreed", "logits", "refused"]

IDS = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Logits(TokenJob):
    """Logits of a batch, [B, T, V]."""

    def keep(self, hidden: Tensor) -> Tensor:
        return hidden

    def answer(self, decoder: Decoder, kept: Tensor) -> Tensor:
        return decoder.leave(kept).float().cpu().clone()


def logits(decoder: Decoder) -> Tensor:
    ((_, (found,)),) = run([dense_path(decoder)], [Logits(IDS)])
    assert isinstance(found, Tensor)
    return found


def whole(folder: Path) -> tuple[Tensor, int]:
    decoder = Decoder(load_model(str(folder))[0])
    return logits(decoder), decoder.n_parameters()


def streamed(folder: Path) -> tuple[Tensor, int]:
    decoder, _ = load_streamed(str(folder))
    with decoder.source:
        return logits(decoder), decoder.n_parameters()


def counted(folder: Path) -> int:
    config = build_config({"models": [str(folder)], "methods": "dense", "tasks": "piqa"})
    return plan_run(config).rows[0].dense


def agreed(folder: Path) -> tuple[Tensor, int] | str:
    """The logits and the count that all readers give, or the message with which all refuse."""
    found: list[Any] = []
    for reader in (whole, streamed, counted):
        try:
            found.append(reader(folder))
        except StreamlineError as error:
            found.append(str(error))
    memory, stream, count = found
    if isinstance(memory, str):
        assert memory == stream == count
        assert "\n" not in memory
        return memory
    assert not isinstance(stream, str), stream
    torch.testing.assert_close(stream[0], memory[0], rtol=0, atol=1e-5)
    assert memory[1] == stream[1] == count
    return memory  # type: ignore[no-any-return]


def refused(found: Any, message: str) -> None:
    """Check that all three refused, with these words."""
    assert isinstance(found, str), found
    with pytest.raises(StreamlineError, match=message):
        raise StreamlineError(found)
