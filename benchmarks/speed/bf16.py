"""The same models in bfloat16: how they are made, and how far their answers are from float32.

Example::

    light = in_bfloat16(paths)
    effect(questions, score(paths, requests), score(light, requests))
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from streamline.benchmarks.speed.questions import Questions
from streamline.engine.decoder import Decoder
from streamline.engine.paths import Node, Path
from streamline.evaluation.scoring.score import Answers

__all__ = ["effect", "in_bfloat16", "merged", "twin"]


def twin(model: Any) -> Any:
    """A copy of a model with its weights rounded to bfloat16.

    Built anew from the config, because casting would round the rotary frequencies too.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        made = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=torch.bfloat16)
    made.load_state_dict(model.state_dict())
    return made.eval().requires_grad_(False)


def in_bfloat16(paths: Sequence[Path]) -> list[Path]:
    """Some paths of one decoder over its twin; what stands in for layers is copied too."""
    decoder = paths[0].decoder
    half = Decoder(twin(decoder.model))
    modules: dict[int, nn.Module] = {
        id(layer): other for layer, other in zip(decoder.layers, half.layers, strict=True)
    }
    out = []
    for path in paths:
        for node in path.nodes:
            if id(node.module) not in modules:
                modules[id(node.module)] = copy.deepcopy(node.module).bfloat16()
        nodes = tuple(Node(modules[id(node.module)], node.layer) for node in path.nodes)
        out.append(Path(half, nodes, path.name))
    return out


def effect(
    questions: Questions, exact: Sequence[Answers], rounded: Sequence[Answers]
) -> dict[str, Any]:
    """How far answers in bfloat16 are from those in float32, over all models.

    Returns:
        ``right``: right and asked by task of the first model; ``alike`` of ``n`` questions graded
        alike; ``max_difference`` and ``mean_difference`` of summed log-probabilities.
    """
    pairs: list[tuple[bool, bool]] = []
    first: dict[str, list[int]] = {}
    for mine, other in zip(exact, rounded, strict=True):
        before, after = questions.grade(mine), questions.grade(other)
        pairs += [p for task in before for p in zip(before[task], after[task], strict=True)]
        first = first or {task: [sum(right), len(right)] for task, right in after.items()}
    gaps = np.abs(
        np.concatenate([a.loglikelihood for a in exact])
        - np.concatenate([a.loglikelihood for a in rounded])
    )
    return {
        "right": first,
        "alike": sum(a == b for a, b in pairs),
        "n": len(pairs),
        "max_difference": float(gaps.max()),
        "mean_difference": float(gaps.mean()),
    }


def merged(effects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The effects of all repetitions as one, without the accuracies."""
    return {
        "questions_graded_alike": sum(e["alike"] for e in effects) / sum(e["n"] for e in effects),
        "max_difference": max(e["max_difference"] for e in effects),
        "mean_difference": float(np.mean([e["mean_difference"] for e in effects])),
    }
