"""Strict and offline surroundings, and the few fixtures that all tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # of children too: several tests run at a time
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # as the command sets it, before torch is there

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from undrawn import leave_blank

from streamline.run.planning.rehearsal import Rehearsal
from streamline.testing.models import tiny_model, tiny_tokenizer

gc.disable()  # until all tests are imported
torch.set_num_threads(1)
os.fsync = lambda _: None  # no test cuts the power, and each run would wait for the disk 75 times
pytest_plugins = ["bad_input", "fabricated_run"]

#: Folders that take long: they are begun first, so that at the end no worker waits for another.
_LONG = ("hub", "faults", "distributed", "checkpoints", "run")
#: Folders that are one worker's: a process that has imported everything waits for all their tests.
_TOGETHER = ("faults", "hub")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long first."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(_folder(item.nodeid), len(places)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collector looks at the rest alone, and more seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile`` some folders stay on one worker as well."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrFolder(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = _folder(nodeid)
            return folder if folder in _TOGETHER else super()._split_scope(nodeid)

    return ByFileOrFolder(config, log)


def _folder(nodeid: str) -> str:
    """The folder of a test within this one: ``run`` of ``tests/run/test_cell.py::test_a``."""
    return nodeid.partition("::")[0].split("/")[1]


@pytest.fixture(scope="module", autouse=True)
def undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures are drawn in the tests of reports; elsewhere a run would take longer for them."""
    with pytest.MonkeyPatch.context() as patch:
        if _folder(request.node.nodeid) != "report":
            leave_blank(patch.setattr)
        yield


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
