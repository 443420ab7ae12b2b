"""The ascent of SDP-CROWN: each linear form by itself, no worse for more steps, and its end."""

import math

import pytest
import torch

from lirpa_multinorm.verifier.relaxations.ascent import OptimizerSettings
from lirpa_multinorm.verifier.relaxations.sdp_crown import Relaxation, optimized_bounds
from tests.checks import assert_same
from tests.verifier.problems import graph_problem


def test_many_functionals_of_one_example_have_the_bounds_of_as_many_examples():
    _, problem = graph_problem("conv", 1)
    v, generator = torch.randn(6, 3), torch.Generator().manual_seed(0)
    for place in range(len(problem.regions)):
        alone = problem.rows(torch.tensor([place]))
        splits = [
            torch.randint(-1, 2, (6, low.shape[1]), generator=generator) * ((low < 0) & (high > 0))
            for low, high in zip(alone.hidden.lower, alone.hidden.upper)
        ]
        single, many = (
            Relaxation(which, v, splits)
            for which in (alone, alone.rows(torch.zeros(6, dtype=torch.long)))
        )
        first = single.first()
        assert_same(single.value(first), many.value(first))
        improved = [
            relaxation.improved(first, 3, OptimizerSettings(enough=math.inf))[0]
            for relaxation in (single, many)
        ]
        assert_same(*improved, atol=1e-4)
        assert_same(single.losses(first), many.losses(first))


def test_each_functional_is_bounded_on_its_own():
    """Dropping the finished ones, or bounding one by one, changes nothing but rounding."""
    _, problem = graph_problem()
    v = torch.randn(20, 3)
    together = optimized_bounds(problem, v, OptimizerSettings((10,), enough=math.inf))
    for row in (0, 7, 19):
        index = torch.tensor([row])
        settings = OptimizerSettings((10,), enough=math.inf)
        alone = optimized_bounds(problem.rows(index), v[index], settings)
        assert_same(alone, together[index], atol=1e-4)


def test_the_search_stops_where_it_is_enough():
    _, problem = graph_problem()
    v = torch.randn(20, 3)
    full = optimized_bounds(problem, v, OptimizerSettings((5, 25), enough=math.inf))
    level = float(full.median())
    result = optimized_bounds(problem, v, OptimizerSettings((5, 25), enough=level))
    first = optimized_bounds(problem, v, OptimizerSettings(()))
    assert (full >= first).all() and (result >= first).all() and (result <= full + 1e-4).all()
    assert ((result > level) == (full > level)).float().mean() >= 0.9
    assert torch.allclose(result[full <= level], full[full <= level], atol=0.02)


def test_a_group_is_given_up_with_its_lowest():
    """Rows of one example belong together.

    Where the lowest stays below, the others keep their first bound.
    """
    _, problem = graph_problem()
    rows, v = torch.arange(20).repeat_interleave(2), torch.randn(40, 3)
    arguments = problem.rows(rows), v
    first = optimized_bounds(*arguments, OptimizerSettings(()))
    alone = optimized_bounds(*arguments, OptimizerSettings((10,)))
    result = optimized_bounds(*arguments, OptimizerSettings((10,)), groups=rows)
    passed = {"whole": 0, "lost": 0}
    for pair in rows.view(-1, 2) * 0 + torch.arange(40).view(-1, 2):
        lead, other = pair[first[pair].argsort()].tolist()
        assert result[lead] == pytest.approx(float(alone[lead]), abs=1e-4)
        expected = alone if alone[lead] > 0 else first
        passed["whole" if alone[lead] > 0 else "lost"] += bool(first[lead] <= 0)
        assert result[other] == pytest.approx(float(expected[other]), abs=1e-4)
    assert passed["lost"] and torch.equal(
        (result > 0).view(-1, 2).all(1), (alone > 0).view(-1, 2).all(1)
    )


def test_more_steps_are_no_worse():
    _, problem = graph_problem()
    v = torch.randn(20, 3)
    bounds = [
        optimized_bounds(problem, v, OptimizerSettings((steps,), enough=math.inf))
        for steps in (1, 5, 40)
    ]
    assert (bounds[0] <= bounds[1]).all() and (bounds[1] <= bounds[2]).all()
    assert (bounds[0] < bounds[2]).any()
