"""Where models can be served follows from their layers, and every format refuses by name."""

from __future__ import annotations

import pytest
from checkpoints.formats import variants
from checkpoints.formats.variants import decoder_of, saved

from streamline.checkpoints.formats.form import form_of, read_form
from streamline.checkpoints.formats.serving import FORMATS, serves_in, write_format
from streamline.errors import AssetError, ConfigError, UnsupportedModelError
from streamline.registry import load_method
from streamline.testing.served import Served

PLAIN = ["transformers", "vLLM", "SGLang"]
OWN = ["transformers (trust_remote_code)"]
BLOCKS = [f"{name} (--to nemotron-nas)" for name in ("vLLM", "SGLang", "TensorRT-LLM", "mlx-lm")]
GGUF = ["llama.cpp (--to gguf)"]


@pytest.mark.parametrize(
    ("family", "kind", "places"),
    [
        ("llama", "dropped", PLAIN + GGUF),
        ("opt", "dropped", PLAIN),
        ("llama", "ffn", OWN),
        ("llama", "block", OWN + BLOCKS + GGUF),
        ("llama", "without_attention", OWN + BLOCKS + GGUF),
        ("llama", "without_either", OWN + BLOCKS),
        ("opt", "without_attention", OWN),
    ],
)
def test_places_follow_from_the_layers(tmp_path, family, kind, places):
    decoder, prune = decoder_of(family), getattr(variants, kind)
    form = form_of(prune(decoder).path(decoder))
    assert serves_in(form) == places
    folder = saved(prune, decoder, tmp_path / "a")
    assert serves_in(read_form(folder)) == places
    assert ", ".join(places) in (folder / "README.md").read_text().replace("\\", "")
    for name in ("gguf", "nemotron-nas"):
        if f"--to {name}" in " ".join(places):
            write_format(folder, name, tmp_path / name)
        elif not form.plain:
            with pytest.raises(UnsupportedModelError, match=f"{name} cannot hold this model: "):
                write_format(folder, name, tmp_path / name)


def test_methods_are_asked_by_what_they_make():
    served = Served()
    found = {
        name: served.of(load_method(name)())
        for name in ("shortgpt", "llm-streamline-ffn", "llm-drop", "given-layers")
    }
    assert found == {
        "shortgpt": PLAIN + GGUF,
        "llm-streamline-ffn": OWN,
        "llm-drop": OWN + BLOCKS + GGUF,
        "given-layers": None,
    }


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_written_over_and_no_folder_is_guessed(tmp_path, name):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        write_format(tmp_path, name, tmp_path / "full")
    with pytest.raises(AssetError, match="is no checkpoint of this package"):
        write_format(tmp_path, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
