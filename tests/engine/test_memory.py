"""Splitting what does not fit, with failures made on purpose."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from streamline.engine.memory import BatchLimit, out_of_memory
from streamline.errors import StreamlineError


@dataclass
class Items:
    """A batch of numbers."""

    items: list[int]

    @property
    def n_tokens(self) -> int:
        return len(self.items)

    def split(self) -> list[Items]:
        middle = len(self.items) // 2
        return [Items(self.items[:middle]), Items(self.items[middle:])] if middle else []

    def describe(self) -> str:
        return f"item {self.items[0]}"


def test_a_batch_is_split_until_it_fits_and_the_smaller_size_is_kept() -> None:
    tried: list[int] = []

    def answer(part: Items) -> int:
        tried.append(len(part.items))
        if len(part.items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(part.items)

    limit = BatchLimit()
    first = limit.apply(Items(list(range(10))), answer)
    assert [item for part, _ in first for item in part.items] == list(range(10))
    assert [result for _, result in first] == [1, 2, 7, 11, 7, 17]
    assert tried[0] == 10 and limit.tokens == 2
    tried.clear()
    second = limit.apply(Items(list(range(8))), answer)
    assert sum(result for _, result in second) == 28
    assert max(tried) <= 2


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error: Exception, verdict: bool) -> None:
    assert out_of_memory(error) is verdict


def test_the_cpu_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


def test_what_cannot_be_split_is_named() -> None:
    def answer(_: Items) -> None:
        raise MemoryError("nothing left")

    with pytest.raises(StreamlineError, match=r"memory ran out with item 7 alone \(nothing left\)"):
        BatchLimit().apply(Items([7]), answer)


def test_other_errors_are_not_swallowed() -> None:
    def answer(_: Items) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        BatchLimit().apply(Items([1, 2]), answer)


def test_the_least_that_any_process_found_counts() -> None:
    limit = BatchLimit()
    limit.lower(None)
    assert limit.tokens is None
    limit.lower(8)
    limit.lower(16)
    assert limit.tokens == 8
