"""Paths of three kinds through one model."""

from __future__ import annotations

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path, dense_path


def some_paths(decoder: Decoder) -> list[Path]:
    """Dense, a layer dropped, and a layer twice."""
    dense = dense_path(decoder)
    twice = (dense.nodes[0], Node(decoder.layers[0], 0), *dense.nodes[1:])
    return [dense, dense.without(1), Path(decoder, twice)]
