"""The l_0 ball against every choice of values, in bounds, attacks, certificates and settings."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL0,
    PerturbationL1Box,
    PerturbationLinf,
    build_loss,
    certified_radii,
    certify,
    margin_matrix,
    pgd,
    restricted,
)
from lirpa_multinorm.abcrown import export_problems
from lirpa_multinorm.certification import CERTIFIED, FALSIFIED
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations.described import describe_set, set_from
from lirpa_multinorm.perturbations.rows import DenseRows
from lirpa_multinorm.training.radii import check_radii
from tests.checks import assert_same, assert_within

METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized", "Lipschitz", "SDP-CROWN"]
NETWORKS = {
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    ),
    "convolutional": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ),
    "normalised": lambda: nn.Sequential(
        nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)
    ),
}
RANGES = [(0.0, 1.0), (-0.5, 2.0)]


def network(name, clip=(0.0, 1.0)):
    torch.manual_seed(0)
    low, high = clip
    return NETWORKS[name]().eval(), low + (high - low) * torch.rand(3, 2, 3, 3)


def corners(x, count, clip):
    """Every input of which ``count`` values are at an end of the range, (N, n)."""
    points = []
    for chosen in itertools.combinations(range(len(x)), count):
        for ends in itertools.product(clip, repeat=count):
            point = x.clone()
            point[list(chosen)] = torch.tensor(ends, dtype=point.dtype)
            points.append(point)
    return torch.stack(points)


@pytest.mark.parametrize("clip", RANGES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 9])
def test_a_linear_form_is_bounded_by_its_largest_rises(count, clip):
    torch.manual_seed(count)
    x, forms = clip[0] + (clip[1] - clip[0]) * torch.rand(6), torch.randn(4, 6)
    forms[3] = 0
    values = corners(x, min(count, 6), clip) @ forms.T
    for sign, expected in ((1, values.amax(0)), (-1, values.amin(0))):
        result = PerturbationL0(count, clip).extreme(DenseRows(forms[None]), x[None], sign)
        assert_same(result[0], torch.maximum(sign * expected, sign * (forms @ x)) * sign)


@pytest.mark.parametrize(("count", "clip"), [(0, RANGES[0]), (1, RANGES[1]), (3, RANGES[0])])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_wherever_few_values_change(name, method, count, clip):
    model, x = network(name, clip)
    ball = PerturbationL0(count, clip)
    bounded = BoundedModule(
        model, perturbations=[ball], bound_opts={"optimize_bound_args": {"iteration": 5}}
    )
    bounds = [end.detach() for end in bounded.compute_bounds(x, method=method)]
    low, high = clip
    drawn = low + (high - low) * torch.rand(400, *x.shape).round()
    moved = torch.rand(400, 3, 18).argsort(2).view_as(drawn) < count
    (attacked,) = pgd(model, x, torch.zeros(3).long(), [ball])
    points = torch.cat([torch.where(moved, drawn, x), attacked.unsqueeze(0)])
    assert ball.contains(points.flatten(0, 1), x.repeat(401, 1, 1, 1)).all()
    assert_within(model(points.flatten(0, 1)).unflatten(0, (401, 3)), bounds)
    plain = BoundedModule(model, perturbations=[PerturbationL1Box(count * (high - low), clip)])
    by_l1 = plain.compute_bounds(x, method="IBP")[0]
    if method == "IBP":
        assert bool((bounds[0] >= by_l1 - 1e-4).all())


def test_hand_numbers():
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, -3.0, 1.0]]))
        layer.bias.zero_()
    x = torch.tensor([[0.5, 0.0, 0.2]])  # 1.2; rises 1, 0, 0.8 and falls 1, 3, 0.2
    for count, lower, upper in ((1, -1.8, 2.2), (2, -2.8, 3.0), (3, -3.0, 3.0)):
        bounded = BoundedModule(layer, perturbations=[PerturbationL0(count)])
        for method in ("IBP", "CROWN", "Sparse-CROWN"):
            result = bounded.compute_bounds(x, method=method)
            assert_same(torch.cat(list(result), 1), torch.tensor([[lower, upper]]))


def test_images_are_certified_and_broken():
    model, x = network("linear")
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)  # near a tie
    y, sets = model(x).argmax(1), [PerturbationL0(1), PerturbationL0(18)]
    result = certify(model, x, y, sets, CertifySettings())
    for image, label, status in zip(x, y, result.status[0]):
        ends = corners(image.flatten(), 1, (0, 1)).view(-1, 2, 3, 3)
        held = bool((model(ends).argmax(1) == label).all())
        assert held or status == FALSIFIED  # the ends hold the worst only of a linear network
        assert status in (CERTIFIED, FALSIFIED)
    for (set_index, image), point in result.adversarial.items():
        assert sets[set_index].contains(point[None], x[image : image + 1])
        assert model(point[None]).argmax() != y[image]
    assert result.adversarial


def test_membership():
    x, ball = torch.full((1, 4), 0.5), PerturbationL0(2)
    for values, inside in (
        ([0.0, 1.0, 0.5, 0.5], True),
        ([0.0, 1.0, 0.6, 0.5], False),
        ([0.0, 1.1, 0.5, 0.5], False),
        ([0.0, float("nan"), 0.5, 0.5], False),
        ([0.5, 0.5, 0.5, 0.5], True),
    ):
        assert bool(ball.contains(torch.tensor([values]), x)) is inside
    assert ball.l2_radius(x).item() == pytest.approx(0.5 * 2**0.5)


def test_the_set_is_data_and_says_what_it_is():
    ball = PerturbationL0(3, (-1.0, 1.0))
    assert describe_set(ball) == {"norm": "0", "eps": 3, "clip": [-1.0, 1.0]}
    again = set_from(describe_set(ball))
    assert type(again) is PerturbationL0 and describe_set(again) == describe_set(ball)
    assert (ball.name, ball.label) == ("l_0", "l_0 3")
    assert ball.title() == "l_0 ball of 3 values within [-1, 1]"
    assert repr(ball) == "PerturbationL0(count=3, clip=(-1.0, 1.0))"


def test_fixed_values_do_not_count():
    model, x = network("linear")
    free = torch.zeros(18, dtype=torch.bool)
    free[:2] = True
    few = restricted(PerturbationL0(5), x, free.view(2, 3, 3))
    both = BoundedModule(model, perturbations=[few]).compute_bounds(x, method="IBP")
    box = restricted(PerturbationLinf(1.0), x, free.view(2, 3, 3))  # both of them at any value
    expected = BoundedModule(model, perturbations=[box]).compute_bounds(x, method="IBP")
    assert_same(list(both), list(expected), atol=1e-4)


def test_the_farthest_point_lies_in_the_set():
    x, ball = torch.rand(4, 20), PerturbationL0(3)
    direction = torch.randn(4, 20)
    point = ball.far_point(direction, x)
    assert ball.contains(point, x).all()
    reached = (direction * (point - x)).sum(1)
    rises = torch.maximum(direction * -x, direction * (1 - x))
    assert_same(reached, rises.topk(3).values.sum(1))


@pytest.mark.parametrize("method", METHODS)
def test_a_value_just_outside_the_range_may_go_to_its_other_end(method):
    layer = nn.Linear(1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(-1.0)
        layer.bias.fill_(1 - 4e-7)
    x = torch.tensor([[-9e-7]], dtype=torch.float64)
    bounded = BoundedModule(layer, perturbations=[PerturbationL0(1)])
    assert float(bounded.compute_bounds(x, method=method)[0]) <= -4e-7 + 1e-12


def test_a_radius_is_not_searched_or_scaled_for_it():
    model, x = network("linear")
    y = torch.zeros(3).long()
    with pytest.raises(InvalidArgumentError, match="radius"):
        certified_radii(model, x, y, [PerturbationL0(3)])
    l_1, l_0 = build_loss("ibp", [PerturbationL1Box(1.0), PerturbationL0(2)], shrink_1=0.25).terms
    assert (l_1.shrink, l_0.shrink) == (0.25, 0.0)
    for count in (1, 2, 5):  # attacks in training shrink a radius by a share
        (term,) = build_loss("joint", [PerturbationL0(count)]).terms
        assert term.attacked.label == f"l_0 {count}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_radii([PerturbationL0(7), PerturbationL0(999)], x, y)


def test_of_some_values_it_is_data_too():
    x = torch.rand(2, 4)
    few = restricted(PerturbationL0(2), x, torch.tensor([True, True, True, False]))
    again = set_from(describe_set(few))
    for ends in zip(few.enclosing_box(x), again.enclosing_box(x)):
        assert_same(*ends)
    assert again.label == few.label
    with pytest.raises(InvalidArgumentError, match="several"):
        describe_set(PerturbationL0(2).with_eps(torch.tensor([1.0, 2.1])))


def test_a_training_step_takes_it():
    model, x = network("convolutional")
    y, bounded = torch.tensor([0, 1, 2]), BoundedModule(model.train(), perturbations=None)
    loss = build_loss("ibp", [PerturbationL0(2)])
    for scale in (0.0, 0.5, 1.0):
        result = loss(bounded, x, y, eps_scale=scale)
        counted = BoundedModule(model, perturbations=[PerturbationL0(round(2 * scale))])
        C = margin_matrix(y, 3)
        expected = counted.compute_bounds(x, C=C, method="IBP", bound_upper=False)[0]
        assert_same(result.margins[0], expected)
    result.value.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1,), "count"),
        ((1.5,), "count"),
        ((True,), "count"),
        ((10**30,), "count"),
        ((1, None), "clip"),
        ((1, (1.0, 0.0)), "clip"),
        ((1, (0.0, float("inf"))), "clip"),
    ],
    ids=str,
)
def test_bad_input(arguments, named):
    with pytest.raises(InvalidArgumentError, match=named):
        PerturbationL0(*arguments)


def test_alpha_beta_crown_has_no_such_set(tmp_path):
    model, x = network("linear")
    with pytest.raises(InvalidArgumentError, match="l_0"):
        export_problems(tmp_path, model, x, torch.zeros(3).long(), [PerturbationL0(1)])
