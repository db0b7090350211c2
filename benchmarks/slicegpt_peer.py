"""The other side of compare_slicegpt.py: slice a folder's model with the released package.

Run by that script with the Python of an environment where the released ``slicegpt`` is installed;
it imports nothing of this package. The folder holds ``model/``, ``tokens.safetensors`` and
``task.json``; left in it are ``peer.json`` and ``peer.safetensors``.

Example::

    /envs/slicegpt/bin/python slicegpt_peer.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Exit code where the released package cannot be imported.
MISSING = 3


def perplexity(model: Any, tokens: Any) -> float:
    """Perplexity of a model over all predicted tokens, one sequence at a time.

    Args:
        model: A causal language model of any transformers version.
        tokens: Token ids, [N, T].
    """
    import torch

    total = 0.0
    with torch.no_grad():
        for ids in tokens.split(1):
            logits = model(ids).logits[:, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
                )
            )
    return float(torch.tensor(total / (tokens[:, 1:].numel())).exp())


def main(folder: Path) -> int:
    """Slice, measure, write."""
    try:
        from slicegpt import layernorm_fusion, rotate
        from slicegpt.adapters.llama_adapter import LlamaModelAdapter
        from slicegpt.adapters.opt_adapter import OPTModelAdapter
        from slicegpt.slicing_scheduler import ConstSlicingScheduler
    except ImportError as error:
        print(f"the released slicegpt cannot be imported by {sys.executable}: {error}")
        return MISSING
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(int(task["threads"]))
    adapters = {"llama": LlamaModelAdapter, "opt": OPTModelAdapter}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", torch_dtype=torch.float32
    ).eval()
    tokens = load_file(str(folder / "tokens.safetensors"))
    facts = {"dense": perplexity(model, tokens["heldout"])}
    adapter = adapters[task["family"]](model)
    adapter.use_cache = False
    layernorm_fusion.replace_layers(adapter)
    tables = [table.weight.data.clone() for table in adapter.get_embeddings()]
    layernorm_fusion.fuse_modules(adapter)
    if task["keep_means"]:
        for table, before in zip(adapter.get_embeddings(), tables, strict=True):
            table.weight.data = before
    facts["fused"] = perplexity(model, tokens["heldout"])
    found: list[Any] = []
    original = rotate.pca_calc

    def remembered(*args: Any, **kwargs: Any) -> Any:
        values, vectors = original(*args, **kwargs)
        found.append(vectors.detach().cpu().double().clone())
        return values, vectors

    rotate.pca_calc = remembered
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for ids in tokens["calibration"].split(task["rows"])
    ]
    rotate.rotate_and_slice(
        adapter, batches, ConstSlicingScheduler(task["width"]), final_orientation="pca"
    )
    facts["sliced"] = perplexity(model, tokens["heldout"])
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    facts["transformers"] = transformers.__version__
    save_file(
        {str(i): q[:, : task["width"]].contiguous() for i, q in enumerate(found)},
        str(folder / "peer.safetensors"),
    )
    (folder / "peer.json").write_text(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
