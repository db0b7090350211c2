"""Plans: indices, replacements and JSON."""

from __future__ import annotations

import json

import pytest

from streamline.errors import PlanError
from streamline.plan import Plan, Span, Step


def test_span_is_half_open() -> None:
    span = Span(2, 5)
    assert (len(span), span.layers, 2 in span, 5 in span) == (3, [2, 3, 4], True, False)


@pytest.mark.parametrize("ends", [(3, 2), (-1, 2)])
def test_span_refuses_disorder(ends: tuple[int, int]) -> None:
    with pytest.raises(PlanError, match=rf"span \[{ends[0]}, {ends[1]}\) needs"):
        Span(*ends)


def test_dense_changes_nothing() -> None:
    plan = Plan.dense(4)
    assert plan.is_dense
    assert (plan.kept_layers, plan.removed_layers) == ([0, 1, 2, 3], [])


def test_drop_leaves_out() -> None:
    plan = Plan.drop(5, [3, 1])
    assert (plan.kept_layers, plan.removed_layers, plan.replacement) == ([0, 2, 4], [1, 3], None)
    assert not plan.is_dense


@pytest.mark.parametrize("removed", [[1, 1], [5], [-1]])
def test_drop_refuses_unknown_or_repeated_layers(removed: list[int]) -> None:
    with pytest.raises(PlanError, match=r"distinct and in \[0, 5\)"):
        Plan.drop(5, removed)


@pytest.mark.parametrize("kind", ["ffn", "layer"])
def test_replacement_stands_for_every_layer_of_its_span(kind: str) -> None:
    plan = Plan.replace(6, Span(1, 4), kind)
    assert (plan.kept_layers, plan.removed_layers) == ([0, 4, 5], [1, 2, 3])
    assert [step.dense for step in plan.steps] == [True, False, True, True]
    assert plan.replacement == kind


def test_replacing_one_layer_by_a_layer_is_not_dense() -> None:
    plan = Plan.replace(3, Span(1, 2), "layer")
    assert not plan.is_dense
    assert plan.removed_layers == [1]


@pytest.mark.parametrize("span", [Span(2, 2), Span(4, 7)])
def test_replace_refuses_spans_that_do_not_fit(span: Span) -> None:
    with pytest.raises(PlanError, match="cannot replace span"):
        Plan.replace(6, span, "ffn")


def test_half_a_layer_is_neither_kept_nor_removed() -> None:
    plan = Plan(3, (Step(0), Step(1, "no-attention"), Step(2)))
    assert (plan.kept_layers, plan.removed_layers, plan.is_dense) == ([0, 2], [], False)


def test_steps_must_lie_in_the_model() -> None:
    with pytest.raises(PlanError, match="outside a model of 3 layers"):
        Plan(3, (Step(3),))
    with pytest.raises(PlanError, match="outside a model of 3 layers"):
        Plan(3, (Step(1, "ffn", Span(1, 4)),))


def test_dense_steps_must_rise() -> None:
    with pytest.raises(PlanError, match=r"must rise and not repeat, got \[1, 0\]"):
        Plan(3, (Step(1), Step(0)))


@pytest.mark.parametrize(
    "plan",
    [
        Plan.dense(3),
        Plan.drop(5, [2]),
        Plan.replace(6, Span(1, 4), "layer"),
        Plan(3, (Step(0, "no-mlp"), Step(2))),
    ],
)
def test_json_round_trip(plan: Plan) -> None:
    text = json.dumps(plan.to_json())
    assert Plan.from_json(json.loads(text)) == plan


def test_reading_what_is_no_plan() -> None:
    with pytest.raises(PlanError, match="not a plan: KeyError"):
        Plan.from_json({"n_layers": 3})
