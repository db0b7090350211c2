"""A checkpoint of each of nine methods, as people use it: without this package, and elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
import yaml
from checkpoints.formats.test_mergekit import rebuilt
from checkpoints.formats.test_nemotron_nas import run_published
from checkpoints.formats.variants import IDS, bpe, decoder_of, logits
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from streamline.checkpoints.checkpoint import read_model, save
from streamline.checkpoints.formats.form import read_form
from streamline.checkpoints.formats.serving import FORMATS, serves_in, write_format
from streamline.errors import UnsupportedModelError
from streamline.registry import build_method

#: Method -> the formats that can hold what it makes of a Llama.
METHODS = {
    "shortgpt": {"mergekit", "gguf", "nemotron-nas"},
    "llm-streamline-none": {"mergekit", "gguf", "nemotron-nas"},
    "llm-streamline-layer": {"gguf", "nemotron-nas"},
    "llm-streamline-ffn": set[str](),
    "llm-streamline-swiglu+norm=true+residual=true": {"gguf", "nemotron-nas"},
    "replaceme": {"gguf", "nemotron-nas"},
    "llm-drop": {"gguf", "nemotron-nas"},
    "llm-pruner": set[str](),
    "slicegpt": set[str](),
}

_USE = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
ids = torch.tensor([json.loads(sys.argv[1])])

def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

for folder in sys.argv[2:]:
    plain = json.load(open(folder + "/config.json"))["model_type"] == "llama"
    model = AutoModelForCausalLM.from_pretrained(folder).eval() if plain else load(folder)
    written = [
        model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, use_cache=cache)
        for cache in (True, False)
    ]
    answer = model(ids).logits[0, -1]
    model.save_pretrained(folder + "-again")
    again = load(folder + "-again")(ids).logits[0, -1]
    settings = LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    loss = adapted(ids, labels=ids).loss
    loss.backward()
    trained = [p.grad is not None for name, p in adapted.named_parameters() if "lora_" in name]
    adapted.save_pretrained(folder + "-adapter")
    print(json.dumps({
        "alike": torch.equal(*written),
        "answer": answer.tolist(),
        "again": float((again - answer).abs().max()),
        "trained": bool(trained) and all(trained),
        "package": "streamline" in sys.modules,
    }), flush=True)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The checkpoint of each method, saved as `prune` saves it."""
    root, found = tmp_path_factory.mktemp("nine"), {}
    base = decoder_of("llama")
    base.model.save_pretrained(root / "base")
    tokens = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(1))
    for spec in METHODS:
        method, decoder = build_method(spec), decoder_of("llama")
        pruned = method.prune(decoder, method.calibrate(decoder, tokens), 0.3, tokens, seed=0)
        for module in pruned.modules.values():
            module.requires_grad_(False)
        cell = {"model": str(root / "base"), "method": spec, "sparsity": 0.3, "seed": 0}
        facts = {
            "cell": {**cell, "recovery": "none"},
            "method": repr(method),
            "paper": method.paper,
        }
        name = spec.partition("+")[0]
        found[spec] = save(pruned, decoder, bpe(), root / name, facts, verify=False)
    return found


@pytest.fixture(scope="module")
def used(folders, tmp_path_factory) -> dict[str, dict[str, object]]:
    """What a process without this package finds of each."""
    child = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            _USE,
            json.dumps(IDS[0].tolist()),
            *map(str, folders.values()),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules")),
        },
    )
    assert child.returncode == 0, child.stderr[-3000:]
    rows = [json.loads(line) for line in child.stdout.splitlines()]
    return dict(zip(folders, rows, strict=True))


@pytest.mark.parametrize("spec", METHODS)
def test_it_has_a_card(folders, spec):
    card = ModelCard.load(folders[spec] / "README.md")
    assert {"pruned", "layer-pruning"} <= set(card.data.tags)
    assert build_method(spec).paper in card.text
    assert ("trust_remote_code" in card.text) is not read_form(folders[spec]).plain


@pytest.mark.parametrize("spec", METHODS)
def test_it_is_used_without_this_package(folders, used, spec):
    found = used[spec]
    assert not found["package"]
    assert found["alike"], "with the cache as without it"
    wanted = logits(folders[spec])[-1]
    torch.testing.assert_close(torch.tensor(found["answer"]), wanted, rtol=1e-4, atol=1e-4)
    assert found["again"] < 1e-5
    assert found["trained"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("spec", METHODS)
def test_it_goes_to_each_format_that_can_hold_it(folders, tmp_path, spec, name):
    folder = folders[spec]
    if name not in METHODS[spec]:
        with pytest.raises(UnsupportedModelError, match=f"{name} cannot hold this model: .{{20}}"):
            write_format(folder, name, tmp_path / "out")
        return
    out = write_format(folder, name, tmp_path / "out")
    wanted = load_file(folder / "model.safetensors")
    if name == "mergekit":
        found = rebuilt(yaml.safe_load((out / "mergekit.yaml").read_text()), "model.layers")
        assert set(found) == set(wanted)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    elif name == "nemotron-nas":
        torch.testing.assert_close(run_published(out), logits(folder), rtol=1e-4, atol=1e-4)
    elif read_form(folder).plain:
        theirs = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf").state_dict()
        ours = read_model(folder).state_dict()
        assert set(theirs) == set(ours)
        assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    else:
        held = sum(tensor.n_elements for tensor in gguf.GGUFReader(out / "model.gguf").tensors)
        assert held == sum(tensor.numel() for tensor in wanted.values())


def test_the_record_says_where(folders):
    for spec, formats in METHODS.items():
        places = " ".join(serves_in(read_form(folders[spec])))
        assert ("--to gguf" in places) == ("gguf" in formats)
