from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from streamline.plan import Span
from streamline.run.checks.merge import merge
from streamline.run.config import build_config
from streamline.training.lora_recipe import LoraSettings
from streamline.training.student import PostTraining, Recipe, Student


def test_a_budget_is_tokens_or_documents():
    assert (Recipe().n_tokens, Recipe().n_documents) == (100_000, None)
    assert Recipe(n_documents=30).n_tokens is None
    same = Recipe.model_validate(Recipe(n_documents=30).model_dump())
    assert (same.n_tokens, same.n_documents) == (None, 30)
    with pytest.raises(ValidationError, match="give n_tokens or n_documents, one of the two"):
        Recipe(n_tokens=9, n_documents=9)
    with pytest.raises(ValidationError, match="give n_tokens or n_documents, one of the two"):
        LoraSettings(n_tokens=9, n_documents=9)


def test_documents_are_about_so_many_tokens_until_they_are_counted():
    recipe = Recipe(texts="slimpajama:rows-v1", n_documents=30_000, epochs=10)
    assert recipe.seen_tokens == 30_000 * 12_400 * 10
    assert LoraSettings().planned_tokens(recipe) == recipe.seen_tokens
    assert LoraSettings(n_documents=7).planned_tokens(recipe) == 7 * 12_400
    counted = recipe.counted(5_000)
    assert (counted.n_tokens, counted.n_documents, counted.seen_tokens) == (5_000, None, 50_000)
    assert counted.decisive() == Recipe(n_tokens=5_000, epochs=10).decisive()


def test_a_student_has_its_fraction_of_what_was_counted():
    student = Student(Span(1, 3), torch.nn.Identity(), Recipe(), token_fraction=0.25)
    student.apply(Recipe(n_documents=30).counted(1_000))
    assert (student.recipe.n_tokens, student.recipe.n_documents) == (250, None)


def test_a_second_training_may_have_fewer_tokens_than_the_documents():
    first, second = Recipe(n_documents=30, post_train=PostTraining(n_tokens=64)).stages()
    assert (first.n_tokens, first.n_documents) == (None, 30)
    assert (second.n_tokens, second.n_documents) == (64, None)


def test_a_budget_takes_the_place_of_the_other_kind():
    assert merge({"n_documents": 5, "epochs": 2}, {"n_tokens": 9}) == {"n_tokens": 9, "epochs": 2}
    assert merge({"n_tokens": 9}, {"n_documents": 5}) == {"n_documents": 5}
    assert merge({"n_tokens": 9}, {"epochs": 5}) == {"n_tokens": 9, "epochs": 5}


def test_the_papers_documents_stand_until_a_flag_says_tokens():
    paper = build_config({}, suite="paper-main").for_model("llama2-7b").training
    assert (paper.n_documents, paper.n_tokens, paper.epochs) == (30_000, None, 10)
    trial = {"training": {"n_tokens": 9_000}}
    own = build_config(trial, suite="paper-main").for_model("llama2-7b").training
    assert (own.n_documents, own.n_tokens) == (None, 9_000)
    assert build_config({}, suite="paper-lora").for_model("llama2-7b").lora.n_tokens is None
