"""FLOPs of passes are counted from shapes, each shared layer once; other loops are not guessed."""

from __future__ import annotations

import pytest
import torch

from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.engine.meter import metering
from streamline.engine.paths import Path, dense_path
from streamline.methods.loss import path_losses
from streamline.testing.models import tiny_model

TOKENS = torch.arange(48).view(3, 16)


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(tiny_model("llama", n_layers=4))


def matrices(decoder: Decoder) -> tuple[int, int]:
    """Weights of a layer's matrices, and of the head's."""
    layer = sum(p.numel() for p in decoder.layers[0].parameters() if p.dim() > 1)
    return layer, decoder.config.vocab_size * decoder.hidden_size


def test_a_calibration_runs_every_layer_once_and_no_head(decoder: Decoder) -> None:
    with metering() as meter:
        measure(decoder, TOKENS, batch_tokens=16)
    assert meter.flops == 2 * TOKENS.numel() * 4 * matrices(decoder)[0]


def test_a_layer_that_paths_share_counts_once_and_the_head_for_each(decoder: Decoder) -> None:
    layer, head = matrices(decoder)
    nodes = dense_path(decoder).nodes
    paths = [dense_path(decoder), Path(decoder, nodes[:2] + nodes[3:])]
    with metering() as meter:
        path_losses(paths, TOKENS)
        once = 2 * TOKENS.numel() * (5 * layer + 2 * head)
        assert meter.flops == once
        path_losses(paths, TOKENS)
    assert meter.flops == 2 * once


def test_a_loop_of_its_own_is_not_guessed(decoder: Decoder) -> None:
    with metering() as meter:
        measure(decoder, TOKENS)
        decoder.logits(TOKENS)
        measure(decoder, TOKENS)
    assert meter.flops is None
    decoder.logits(TOKENS)  # nothing counts
    with metering() as meter:
        pass
    assert meter.flops == 0
