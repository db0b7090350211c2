"""What a packed batch is to a model: its inputs, its attention, and the places that are scored.

Example::

    entry = decoder.enter(*inputs_of(batch, decoder))
    blocks = blocks_for(batch, decoder, entry.hidden)
    Scored.of(batch).where              # where the head is needed
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.engine.transfer import onto
from streamline.evaluation.scoring.packing import Batch
from streamline.evaluation.scoring.tree_attention import Block, blocks_of, split, tree_mask

__all__ = ["Scored", "blocks_for", "inputs_of"]

_BLOCK = 96  # tokens of an attention block; measured on CPUs


@dataclass(frozen=True)
class Scored:
    """The inputs of a batch.

    Attributes:
        where: Distinct places of a row laid flat whose output predicts a scored token, [P], rising.
        picks: For each scored token its index into ``where``, [S].
        targets: The scored tokens, [S].
    """

    where: Tensor
    picks: Tensor
    targets: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Scored:
        """The inputs of one batch."""
        places, inverse = np.unique(batch.scored, return_inverse=True)
        targets = torch.from_numpy(batch.targets)
        return cls(torch.from_numpy(places), torch.from_numpy(inverse.reshape(-1)), targets)


def inputs_of(batch: Batch, decoder: Decoder) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a model is entered with: tokens [B, T], mask and positions (None where not needed)."""
    tokens = torch.from_numpy(batch.padded("tokens"))
    if not batch.tree:
        lengths = torch.from_numpy(batch.lengths())
        mask = (torch.arange(batch.width) < lengths[:, None]).long()
        return tokens, mask if len(batch.rows) > 1 else None, None
    ends = onto(torch.from_numpy(_ends(batch)), decoder.device)
    mask = tree_mask(ends, decoder.dtype)
    return tokens, mask, torch.from_numpy(batch.padded("positions"))


def blocks_for(batch: Batch, decoder: Decoder, like: Tensor) -> list[Block] | None:
    """The blocks in which a batch is attended, or None where the whole mask serves better."""
    if not batch.tree or len(batch.rows) > 1 or decoder.device.type != "cpu":
        return None
    (ends,) = _ends(batch)
    return blocks_of(split(ends, _BLOCK), ends, like)


def _ends(batch: Batch) -> NDArray[np.int64]:
    """End of each token's subtree, [B, T]; padding looks at itself alone."""
    ends = batch.padded("ends")
    for line, row in zip(ends, batch.rows, strict=True):
        line[len(row) :] = np.arange(len(row), batch.width) + 1
    return ends
