"""Models of a hub: each process reads one commit of them, and only the files that it needs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from hub.conftest import Child
from hub.loopback import LoopbackHub
from transformers import PreTrainedTokenizerFast

from streamline.testing.models import tiny_model

_MOVES = """
import json, sys
from pathlib import Path
from streamline.sources import models
from streamline.streaming.opening import load_streamed

repository = Path(json.loads(sys.argv[1]))
config = models.load_config("some/model")
key = models.model_fingerprint("some/model")
(repository / "main").rename(repository / "before")
(repository / "next").rename(repository / "main")
tokenizer = models.load_tokenizer("some/model")
model, _ = models.load_model("some/model")
decoder, _ = load_streamed("some/model")
print(json.dumps({
    "config": config.rms_norm_eps,
    "model": [model.config.rms_norm_eps, model.lm_head.weight[0, 0].item()],
    "streamed": [decoder.config.rms_norm_eps, decoder.source.read("lm_head.weight")[0, 0].item()],
    "names": [model.config.name_or_path, model.num_parameters()],
    "same": key == models.model_fingerprint("some/model"),
    "key": key,
}))
"""

_READS = """
import json, sys
from streamline.sources import models
from streamline.streaming.opening import load_streamed

model, _ = models.load_model("some/model")
decoder, _ = load_streamed("some/model")
print(json.dumps({
    "model": model.lm_head.weight[0, 0].item(),
    "streamed": decoder.source.read("lm_head.weight")[0, 0].item(),
    "here": models.local_folder("some/model") is not None,
    "key": models.model_fingerprint("some/model"),
}))
"""


def publish(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, eps: float, head: float, pickled: bool
) -> None:
    model = tiny_model("llama", n_layers=2, rms_norm_eps=eps)
    torch.nn.init.constant_(model.lm_head.weight, head)
    model.save_pretrained(folder, max_shard_size="40KB")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer.save_pretrained(folder)
    if pickled:
        for path in folder.glob("*.safetensors*"):
            path.unlink()


def test_all_of_a_model_is_read_at_one_commit(
    hub: LoopbackHub, child: Child, tokenizer: PreTrainedTokenizerFast
) -> None:
    repository = hub.root / "models" / "some" / "model"
    publish(repository / "main", tokenizer, eps=0.25, head=1.0, pickled=False)
    publish(repository / "next", tokenizer, eps=0.5, head=2.0, pickled=False)
    done = child(_MOVES, hub, str(repository))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["config"] == 0.25
    assert found["model"] == found["streamed"] == [0.25, 1.0]
    assert found["names"][0] == "some/model"
    assert found["same"]
    assert hub.fetched("model.safetensors.index.json") == 1
    assert hub.fetched("pytorch_model.bin") == 0
    again = child(_READS, hub, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    wanted = {"model": 1.0, "streamed": 1.0, "here": True, "key": found["key"]}
    assert json.loads(again.stdout) == wanted


def test_pickled_weights_alone_are_read_whole_and_streamed(
    hub: LoopbackHub, child: Child, tokenizer: PreTrainedTokenizerFast
) -> None:
    repository = hub.root / "models" / "some" / "model"
    publish(repository / "main", tokenizer, eps=0.25, head=1.0, pickled=True)
    done = child(_READS, hub)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["streamed"], found["here"]) == (1.0, 1.0, True)
