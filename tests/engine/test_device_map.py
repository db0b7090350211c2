"""Models spread or offloaded by accelerate's hooks answer as whole ones do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from streamline.calibration import measure
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, dense_path
from streamline.engine.paths import Path as LayerPath
from streamline.errors import UnsupportedModelError
from streamline.evaluation.scoring.score import Request, score
from streamline.methods.loss import path_losses
from streamline.methods.replacement import FFN, make
from streamline.plan import Span
from streamline.testing.models import tiny_model

TOKENS = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))


def spread(decoder: Decoder) -> dict[str, str]:
    """Every other layer on the disk, everything else in memory."""
    layers = decoder.family.layers
    places: dict[str, str] = {}
    for name, module in decoder.model.named_modules():
        if name.startswith(f"{layers}."):
            index = name.removeprefix(f"{layers}.")
            if index.isdigit():
                places[name] = "disk" if int(index) % 2 else "cpu"
        elif not list(module.children()) and list(module.parameters()):
            places[name] = "cpu"
    return places


def questions() -> list[Request]:
    rng = random.Random(0)
    contexts = [tuple(rng.randrange(256) for _ in range(9)) for _ in range(5)]
    return [Request("t", i, j, c, (j, i)) for i, c in enumerate(contexts) for j in range(3)]


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("everything", [True, False])
def test_a_model_on_the_disk_gives_the_same_numbers(
    family: str, everything: bool, tmp_path: Path
) -> None:
    model = tiny_model(family, n_layers=4, tied=family == "opt")
    model.save_pretrained(tmp_path / "model")
    whole = Decoder(model)
    places: dict[str, Any] = {"": "disk"} if everything else spread(whole)
    away = Decoder(
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
        )
    )
    assert any(p.device.type == "meta" for p in away.model.parameters())
    assert away.device == torch.device("cpu")
    ffn = FFN(32, 32)
    answers = []
    for decoder in (whole, away):
        layers = decoder.layers
        nodes = (Node(layers[0], 0), Node(ffn, 1), Node(layers[3], 3))
        paths = [dense_path(decoder), LayerPath(decoder, nodes)]
        scores = [part.loglikelihood for part in score(paths, questions())]
        answers.append((np.concatenate(scores), path_losses(paths, TOKENS)))
    np.testing.assert_allclose(answers[1][0], answers[0][0], rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(answers[1][1], answers[0][1], rtol=1e-5)
    torch.testing.assert_close(measure(away, TOKENS).cosine, measure(whole, TOKENS).cosine)


def test_networks_for_offloaded_layers_keep_their_start(tmp_path: Path) -> None:
    model = tiny_model("llama", n_layers=4)
    model.save_pretrained(tmp_path / "model")
    whole = Decoder(model)
    away = Decoder(
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", device_map=spread(whole), offload_folder=tmp_path / "offloaded"
        )
    )
    wanted, found = (make("ffn", d, Span(1, 3), init="random", seed=3) for d in (whole, away))
    for a, b in zip(wanted.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UnsupportedModelError, match="are offloaded"):
        make("layer", away, Span(1, 3), init="first", seed=0)
    layer = make("layer", away, Span(0, 1), init="first", seed=0)
    assert not any(hasattr(module, "_hf_hook") for module in layer.modules())
