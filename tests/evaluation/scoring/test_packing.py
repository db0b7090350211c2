from __future__ import annotations

import random

import numpy as np
import pytest

from streamline.evaluation.scoring.packing import Batch, Request, Row, pack, split_batch


def request(context: str, continuation: str, task: str = "t") -> Request:
    return Request(task, 0, 0, tuple(context.encode()), tuple(continuation.encode()))


def many(n: int = 60, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    out = []
    for doc in range(n):
        stem = "Question: " + "".join(rng.choice("ab") for _ in range(rng.randint(1, 12)))
        for option in range(4):
            answer = "".join(rng.choice("xy") for _ in range(rng.randint(1, 5)))
            out.append(Request("t", doc, option, tuple(stem.encode()), tuple(answer.encode())))
    return out


def seen_from(row: Row, place: int) -> list[int]:
    """The tokens that a place looks at, in order of their positions: its own sequence."""
    seen = [j for j in range(place + 1) if row.ends[j] > place]
    assert row.positions[seen].tolist() == list(range(len(seen)))
    return row.tokens[seen].tolist()


def check(requests: list[Request], batches: list[Batch]) -> None:
    """Every scored place sees exactly the request's own tokens before the target."""
    answered = []
    for batch in batches:
        for row in batch.rows:
            low = 0
            for index, count in zip(row.requests, row.counts, strict=True):
                one = requests[index]
                whole = [*one.context, *one.continuation]
                for k in range(count):
                    place, target = row.scored[low + k], row.targets[low + k]
                    before = len(one.context) + k
                    assert seen_from(row, place) == whole[:before]
                    assert target == whole[before]
                low += count
                answered.append(int(index))
            assert low == len(row.scored)
    assert sorted(answered) == list(range(len(requests)))


@pytest.mark.parametrize("batch_tokens", [1, 30, 200, 10_000])
@pytest.mark.parametrize("tree", [True, False])
def test_every_scored_token_sees_its_own_past(batch_tokens: int, tree: bool) -> None:
    requests = many()
    check(requests, pack(requests, batch_tokens=batch_tokens, tree=tree))


def test_rows_of_several_trees_in_a_batch() -> None:
    requests = many()
    batches = pack(requests, batch_tokens=300, row_tokens=60)
    check(requests, batches)
    assert any(len(batch.rows) > 1 for batch in batches)
    assert all(len(batch.rows) * batch.width <= 300 for batch in batches)


def test_each_distinct_token_is_computed_once() -> None:
    requests = [request("the cat ", word) for word in ("sat", "sang", "sat")]
    (batch,) = pack(requests, batch_tokens=100)
    assert batch.n_tokens == len("the cat sa") + len("n")
    assert batch.n_naive_tokens == len("the cat sa") * 2 + len("the cat san")


def test_a_budget_cuts_where_least_is_shared() -> None:
    stems = ["aaaaaaaaaa", "bbbbbbbbbb", "cccccccccc"]
    requests = [request(stem, f"{o}xx") for stem in stems for o in "123"]
    batches = pack(requests, batch_tokens=20)
    assert sum(batch.n_tokens for batch in batches) == 3 * (10 + 3 * 2)


def test_a_long_prefix_is_repeated_once_a_batch() -> None:
    requests = [request("p" * 50 + f"{i:02d}", "yz") for i in range(40)]
    batches = pack(requests, batch_tokens=80)
    check(requests, batches)
    # 40 questions: ten tens digits shared at best, units and one answer token each
    assert len(batches) == 3 and all(batch.n_tokens <= 80 for batch in batches)


def test_too_long_a_request_goes_alone() -> None:
    requests = [request("x" * 50, "ab"), request("y", "z")]
    batches = pack(requests, batch_tokens=10)
    assert sorted(batch.n_tokens for batch in batches) == [1, 51]


def test_tasks_never_share_a_batch() -> None:
    requests = [request("a", "b", task) for task in ("one", "two", "one")]
    batches = pack(requests, batch_tokens=100)
    assert [batch.task for batch in batches] == ["one", "two"]


def test_long_sequences_stay_out_of_trees() -> None:
    requests = [request("abcdefgh", "ij"), request("abc", "de")]
    batches = pack(requests, batch_tokens=100, tree_length=5)
    assert [batch.tree for batch in batches] == [True, False]
    check(requests, batches)


def test_the_order_of_the_requests_does_not_matter() -> None:
    requests = many()
    shuffled = random.Random(1).sample(requests, len(requests))
    first = pack(requests, batch_tokens=100)
    second = pack(shuffled, batch_tokens=100)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.padded("tokens"), b.padded("tokens"))


def test_a_batch_splits_by_rows_and_then_within_its_row() -> None:
    requests = many(5)
    (batch,) = pack(requests, batch_tokens=4000, row_tokens=40)
    parts = split_batch(batch, requests)
    assert sum(len(part.rows) for part in parts) == len(batch.rows) > 1
    row = Batch("t", batch.rows[:1], True)
    smaller = split_batch(row, requests)
    assert len(smaller) > 1
    assert sorted(i for part in smaller for i in part.requests) == sorted(row.requests)
    assert split_batch(pack(requests[:1], batch_tokens=40)[0], requests) == ()


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs at least one token .* got 0 and 1"):
        request("", "a")
    with pytest.raises(ValueError, match="must be positive, got 0"):
        pack([request("a", "b")], batch_tokens=0)
