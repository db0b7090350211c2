"""Strict and offline surroundings, and the few fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from streamline.run.planning.rehearsal import Rehearsal
from streamline.testing.models import tiny_model, tiny_tokenizer

torch.set_num_threads(1)
os.fsync = lambda _: None  # no test cuts the power, and each run would wait for the disk 75 times
pytest_plugins = ["bad_input", "fabricated_run"]


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., PreTrainedModel]:
    """Factory of tiny Llama models: ``tiny_llama(n_layers=6, tied=False, seed=0)``."""
    return partial(tiny_model, "llama")


@pytest.fixture(scope="session")
def tiny_opt() -> Callable[..., PreTrainedModel]:
    """Factory of tiny OPT models."""
    return partial(tiny_model, "opt")


@pytest.fixture(scope="session")
def tiny_qwen3() -> Callable[..., PreTrainedModel]:
    """Factory of tiny Qwen3 models."""
    return partial(tiny_model, "qwen3")


@pytest.fixture
def unrehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of large models without the seconds that their stages take on tensors without data."""
    monkeypatch.setattr(Rehearsal, "peak", lambda *_, **__: 0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The byte-level tokenizer of 259 tokens."""
    return tiny_tokenizer()
