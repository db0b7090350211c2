"""Halving what does not fit, with failures made on purpose."""

from __future__ import annotations

import pytest
import torch

from streamline.engine.memory import Room, out_of_memory
from streamline.errors import StreamlineError


def room() -> Room[list[int]]:
    def halves(part: list[int]) -> tuple[list[int], ...]:
        middle = len(part) // 2
        return (part[:middle], part[middle:]) if middle else ()

    return Room(size=len, halves=halves, describe=lambda part: f"item {part[0]}")


def test_a_batch_is_split_until_it_fits_and_the_smaller_size_is_kept() -> None:
    tried: list[int] = []

    def answer(part: list[int]) -> int:
        tried.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(part)

    space = room()
    first = space.work(list(range(10)), answer)
    assert [item for part, _ in first for item in part] == list(range(10))
    assert [result for _, result in first] == [1, 2, 7, 11, 7, 17]
    assert tried[0] == 10 and space.limit == 2
    tried.clear()
    second = space.work(list(range(8)), answer)
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
    def answer(_: list[int]) -> None:
        raise MemoryError("nothing left")

    with pytest.raises(StreamlineError, match=r"memory ran out with item 7 alone \(nothing left\)"):
        room().work([7], answer)


def test_other_errors_are_not_swallowed() -> None:
    def answer(_: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        room().work([1, 2], answer)
