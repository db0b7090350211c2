"""A calibration on disk that came to harm is set aside by name and measured again."""

from __future__ import annotations

import pytest
import torch
from damages import DAMAGES

from streamline.api.pruning import calibrate
from streamline.api.variants import Dense
from streamline.engine.decoder import Decoder
from streamline.registry import build_method
from streamline.testing.models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_calibration_is_measured_again(tmp_path, damage):
    decoder = Decoder(tiny_model("llama", n_layers=4))
    dense = Dense(name="tiny", decoder=decoder, tokenizer=tiny_tokenizer(), fingerprint="tiny")
    tokens = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(0))
    method = build_method("shortgpt")
    expected = calibrate(method, dense, tokens, tmp_path)
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        DAMAGES[damage](file)
        found = calibrate(method, dense, tokens, tmp_path)
        assert torch.equal(found.cosine, expected.cosine)
        assert (found.n_tokens, found.n_samples) == (64, 4)
        assert file.with_name(f"{file.name}.damaged").exists() == (damage != "missing")
