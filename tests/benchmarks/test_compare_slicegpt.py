"""The comparison with the released SliceGPT, as far as it goes without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streamline.baselines._slicing import principal, slice_model
from streamline.benchmarks import compare_slicegpt
from streamline.benchmarks.compare_slicegpt import main, older_config, overlap
from streamline.benchmarks.slicegpt_peer import perplexity
from streamline.engine.decoder import Decoder
from streamline.engine.paths import dense_path
from streamline.errors import UnsupportedModelError
from streamline.methods.loss import path_losses
from streamline.testing.models import tiny_model, tiny_tokenizer


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_model("opt", n_layers=2, tied=True).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{i} sheep and {i * 7} goats " * 6}) for i in range(60))
    )
    return tmp_path


def arguments(place: Path, *more: str) -> list[str]:
    sizes = ["--samples", "4", "--heldout", "2", "--length", "16", "--width", "24"]
    return [str(place / "model"), "--texts", str(place / "text.jsonl"), *sizes, *more]


def test_a_subspace_has_all_in_common_with_itself_however_it_is_turned():
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    assert overlap(q[:, :5], q[:, :5] @ turn) == pytest.approx(1.0)
    assert overlap(q[:, :5], q[:, 5:10]) == pytest.approx(0.0, abs=1e-12)
    assert overlap(q[:, :4], q[:, 1:5]) == pytest.approx(0.75)


def test_perplexity_is_that_of_all_predicted_tokens(tiny_opt):
    model = tiny_opt(n_layers=2)
    tokens = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(1))
    (loss,) = path_losses([dense_path(Decoder(model))], tokens)
    assert perplexity(model, tokens) == pytest.approx(float(torch.tensor(loss).exp()), rel=1e-4)


def test_configs_are_written_as_the_older_library_reads_them():
    rope = {"rope_type": "default", "rope_theta": 1e5}
    older = older_config({"hidden_size": 8, "rope_parameters": rope, "dtype": "float32"})
    assert older == {"hidden_size": 8, "rope_theta": 1e5}
    assert older_config({"hidden_size": 8}) == {"hidden_size": 8}
    with pytest.raises(UnsupportedModelError, match="positions of type 'llama3'"):
        older_config({"rope_parameters": {"rope_type": "llama3"}})


def test_without_the_released_package_it_says_what_to_do(place, capsys):
    assert main(arguments(place)) == 2
    told = capsys.readouterr().err
    assert "the released slicegpt cannot be imported by" in told
    assert "pip install -r benchmarks/slicegpt-peer.txt" in told
    assert main(arguments(place, "--peer-python", "/no/python")) == 2
    assert "--peer-python '/no/python' cannot be run" in capsys.readouterr().err


@pytest.mark.parametrize(("width", "code"), [(24, 0), (16, 1)])
def test_both_sides_are_compared(place, monkeypatch, capsys, width, code):
    """The other side is played by our own slicing at some width: the same one agrees."""

    def play(python: str, folder: Path) -> None:
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForCausalLM

        tokens = load_file(folder / "tokens.safetensors")
        task = json.loads((folder / "task.json").read_text())
        assert (task["family"], task["width"], task["keep_means"]) == ("opt", 24, False)
        model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
        found: list[Any] = []

        def basis(moment: torch.Tensor) -> torch.Tensor:
            found.append(principal(moment)[:, :width].contiguous())
            return principal(moment)

        sliced = slice_model(Decoder(model), width, tokens["calibration"], basis)
        kept = {str(i): torch.nn.functional.pad(q, (0, 24 - width)) for i, q in enumerate(found)}
        save_file(kept, folder / "peer.safetensors")
        facts = {
            "dense": perplexity(model, tokens["heldout"]),
            "fused": perplexity(model, tokens["heldout"]),
            "sliced": perplexity(sliced, tokens["heldout"]),
            "parameters": sum(p.numel() for p in sliced.parameters()),
        }
        (folder / "peer.json").write_text(json.dumps(facts))

    monkeypatch.setattr(compare_slicegpt, "run_peer", play)
    assert main(arguments(place, "--out", str(place / "out"))) == code
    facts = json.loads((place / "out" / "slicegpt.json").read_text())
    assert len(facts["overlap"]) == 1 + 2 * 2
    if code == 0:
        assert min(facts["overlap"]) == pytest.approx(1.0)
        assert facts["gap"] == pytest.approx(0.0, abs=1e-5)
        assert "perplexity apart by" in capsys.readouterr().out
    else:
        assert max(facts["overlap"]) < 0.9
