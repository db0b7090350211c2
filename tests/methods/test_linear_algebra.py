from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from streamline.methods.linear_algebra import (
    eigenvectors,
    random_rotation,
    second_moment,
    solve,
)

WIDTH = 512


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The number of threads, given back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _states(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, WIDTH, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(
    "compute",
    [
        lambda: eigenvectors(_states(600).T @ _states(600)),
        lambda: random_rotation(WIDTH, torch.Generator().manual_seed(0), torch.device("cpu")),
        lambda: second_moment(_states(3000)),
        lambda: solve(_states(WIDTH), _states(WIDTH)),
    ],
)
def test_results_do_not_depend_on_the_number_of_threads(compute: Callable[[], Tensor]) -> None:
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(compute())
        assert torch.get_num_threads() == n
    assert torch.equal(*found)


def test_eigenvectors_are_ordered_and_their_largest_entries_positive() -> None:
    moment = second_moment(_states(700))
    vectors = eigenvectors(moment)
    values = (vectors.T @ moment @ vectors).diagonal()
    assert torch.equal(values.sort(descending=True).values, values)
    assert (vectors.gather(0, vectors.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(WIDTH, dtype=torch.float64))
    torch.testing.assert_close((vectors * values) @ vectors.T, moment)


def test_a_rotation_is_orthogonal_and_its_seeds_own() -> None:
    cpu = torch.device("cpu")
    first, other = (random_rotation(8, torch.Generator().manual_seed(s), cpu) for s in (0, 1))
    torch.testing.assert_close(first @ first.T, torch.eye(8, dtype=torch.float64))
    assert not torch.equal(first, other)
