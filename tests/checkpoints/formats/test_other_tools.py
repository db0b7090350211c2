"""The tools themselves, each in a folder of its own: mergekit, mlx-lm and llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.formats import variants
from checkpoints.formats.test_mergekit import made
from checkpoints.formats.variants import IDS, bpe, decoder_of, logits, saved
from other_tools import install, printed

from streamline.checkpoints.checkpoint import read_model
from streamline.checkpoints.formats.serving import write_format
from streamline.method import Pruned
from streamline.plan import Plan

pytestmark = pytest.mark.package


@pytest.fixture(scope="module")
def in_their_own(tmp_path_factory) -> Any:
    """``in_their_own(packages, code, *arguments)``: what a process that has these packages beside
    this environment's prints last, as JSON; they are installed once."""
    folders: dict[str, Path] = {}

    def run(packages: str, code: str, *arguments: Any) -> Any:
        if packages not in folders:
            folders[packages] = tmp_path_factory.mktemp("packages")
            install(packages, folders[packages])
        return printed(folders[packages], code, *arguments)

    return run


MERGE = """
import sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
run_merge(config, sys.argv[2], MergeOptions(copy_tokenizer=True))
print("true")
"""


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_mergekit_makes_the_checkpoint(in_their_own, tmp_path, family):
    _, folder = made(tmp_path, family, lambda d: Pruned(Plan.drop(4, [0, 2])))
    out = write_format(folder, "mergekit", tmp_path / "b")
    in_their_own("mergekit immutables", MERGE, out / "mergekit.yaml", tmp_path / "c")
    theirs, ours = read_model(tmp_path / "c"), read_model(folder)
    named = dict(theirs.named_parameters())
    assert all(torch.equal(named[name], parameter) for name, parameter in ours.named_parameters())
    torch.testing.assert_close(logits(tmp_path / "c"), logits(folder), rtol=1e-4, atol=1e-4)


MLX = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model
model, _ = load_model(Path(sys.argv[1]))
print(json.dumps(model(mx.array([json.loads(sys.argv[2])]))[0].tolist()))
"""


@pytest.mark.parametrize("kind", ["block", "without_either"])
def test_mlx_computes_the_same(in_their_own, tmp_path, kind):
    folder = saved(getattr(variants, kind), decoder_of("llama"), tmp_path / "a", bpe())
    out = write_format(folder, "nemotron-nas", tmp_path / "b")
    found = in_their_own("mlx mlx-cpu mlx-lm", MLX, out, IDS[0].tolist())
    torch.testing.assert_close(torch.tensor(found), logits(folder), rtol=1e-4, atol=1e-4)


LLAMA = """
import json, sys
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path = sys.argv[1]
settings.n_ctx, settings.warmup, settings.verbosity = 64, False, 0
asked = {"prompt": json.loads(sys.argv[2]), "n_predict": 1, "temperature": 0, "n_probs": 5}
answer = xllamacpp.Server(settings).handle_completions(asked)
(choice,) = answer["choices"]
rows = choice["logprobs"]["content"][0]["top_logprobs"]
print(json.dumps([[row["id"], row["logprob"]] for row in rows]))
"""


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "dropped"), ("llama", "block"), ("qwen2", "dropped")]
)
def test_llama_cpp_prefers_the_same_tokens(in_their_own, tmp_path, family, kind):
    folder = saved(getattr(variants, kind), decoder_of(family), tmp_path / "a", bpe())
    out = write_format(folder, "gguf", tmp_path / "b")
    found = in_their_own("xllamacpp", LLAMA, out / "model.gguf", IDS[0].tolist())
    wanted = logits(folder)[-1].log_softmax(-1).topk(5)
    assert [token for token, _ in found] == wanted.indices.tolist()
    likely = torch.tensor([value for _, value in found])
    torch.testing.assert_close(likely, wanted.values, rtol=0, atol=5e-3)
