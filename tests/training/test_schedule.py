from __future__ import annotations

import pytest
import torch

from streamline.errors import ConfigError
from streamline.training.schedule import BatchSchedule, Schedule, data_order, divided_bytes


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("n_steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0, 1, 5, 1000])
def test_schedule_ends_exactly_at_the_final_rate(shape: str, n_steps: int, warmup: int) -> None:
    schedule = Schedule(n_steps=n_steps, peak=2e-4, final=5e-5, warmup_steps=warmup, shape=shape)
    rates = [schedule.at(step) for step in range(1, n_steps + 1)]
    assert rates[-1] == 5e-5
    assert max(rates) <= 2e-4
    top = min(warmup, n_steps - 1)
    assert rates[:top] == sorted(rates[:top])
    assert rates[max(top - 1, 0) :] == sorted(rates[max(top - 1, 0) :], reverse=True)
    if top:
        assert rates[top - 1] == 2e-4


def test_schedule_is_halfway_at_half_time() -> None:
    assert Schedule(n_steps=10, peak=3.0, final=1.0).at(5) == pytest.approx(2.0)


def test_schedule_refuses_a_step_outside() -> None:
    with pytest.raises(ValueError, match=r"step 4 lies outside 1\.\.3"):
        Schedule(n_steps=3, peak=1.0).at(4)
    with pytest.raises(ConfigError, match="n_steps >= 1"):
        Schedule(n_steps=0, peak=1.0)
    with pytest.raises(ConfigError, match="'cosine' or 'linear', got 'flat'"):
        Schedule(n_steps=1, peak=1.0, shape="flat")


def test_data_order_is_seeded_and_differs_by_epoch() -> None:
    assert torch.equal(data_order(50, 3, 0), data_order(50, 3, 0))
    assert not torch.equal(data_order(50, 3, 0), data_order(50, 3, 1))
    assert not torch.equal(data_order(50, 3, 0), data_order(50, 4, 0))
    assert sorted(data_order(50, 3, 0).tolist()) == list(range(50))


def test_clock_uses_every_sequence_once_an_epoch_and_keeps_the_partial_batch() -> None:
    schedule = BatchSchedule(n_sequences=10, batch_sequences=4, epochs=2, evaluations=3)
    batches = list(schedule.batches(seed=1))
    assert [step for step, _ in batches] == [1, 2, 3, 4, 5, 6]
    assert [len(indices) for _, indices in batches] == [4, 4, 2, 4, 4, 2]
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat([i for _, i in epoch]).tolist()) == list(range(10))


@pytest.mark.parametrize("first", range(1, 7))
def test_clock_goes_on_where_it_was(first: int) -> None:
    schedule = BatchSchedule(n_sequences=10, batch_sequences=4, epochs=2, evaluations=3)
    whole = [(step, i.tolist()) for step, i in schedule.batches(seed=1)]
    assert [(step, i.tolist()) for step, i in schedule.batches(1, first)] == whole[first - 1 :]
    assert schedule.sequences_before(first) == sum(len(i) for _, i in whole[: first - 1])


def test_clock_evaluates_as_often_as_asked_and_at_the_end() -> None:
    for evaluations in range(0, 9):
        schedule = BatchSchedule(
            n_sequences=8, batch_sequences=1, epochs=1, evaluations=evaluations
        )
        due = [step for step in range(1, 9) if schedule.due(step)]
        assert len(due) == max(1, evaluations)
        assert due[-1] == 8


def test_each_process_holds_its_part_of_the_layers_the_rest_and_what_one_layer_needs() -> None:
    alone, shared = divided_bytes(100, [30, 31], 1), divided_bytes(100, [30, 31], 2)
    assert alone == 20 * 100 + 24 * 31
    assert shared == 20 * (39 + 15 + 16) + 24 * 31
