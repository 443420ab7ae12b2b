"""The loss of l_inf-distance networks: a slow formula, schedules, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import DistanceLoss, build_loss
from lirpa_multinorm.models import LinfDistance, build_model
from tests.checks import assert_same

EPS, STD = 0.1, 0.5


def network(dtype=torch.float64, p=math.inf, **options) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"hidden": [12], **options}
    model = build_model("linf_dist_mlp", (1, 4, 4), 3, (0.3,), (STD,), **options).to(dtype)
    for layer in model:
        if isinstance(layer, LinfDistance):
            nn.init.normal_(layer.weight)
            layer.set_p(p)
    return model


def batch(rows=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(rows, 1, 4, 4, generator=generator, dtype=dtype)
    return x, torch.randint(3, (rows,), generator=generator)


def slow(model, x, y, eps_train, weight):
    """The formula image by image and class by class."""
    logits, theta, total = model(x), 2 * eps_train / STD, 0
    for row, label in zip(logits, y.tolist()):
        worst = max(row[k] - row[label] for k in range(3) if k != label)
        hinge = (worst + theta) / theta
        total = total + min(max(hinge, hinge.new_zeros(())), hinge.new_ones(()))
        total = total + weight * F.cross_entropy(
            (model[-1].scale * row)[None], torch.tensor([label])
        )
    return total / len(x)


@pytest.mark.parametrize("p", [8, math.inf], ids=str)
def test_value_and_gradients_are_those_of_the_slow_formula(p):
    model, (x, y) = network(p=p), batch()
    with torch.no_grad():
        model[-1].scale.fill_(1.5)
    loss = DistanceLoss([PerturbationLinf(EPS)], eps_train=0.3, lambda_start=0.25)
    result = loss(BoundedModule(model), x, y)
    expected = slow(model, x, y, 0.3, 0.25)
    assert_same(result.value, expected, 1e-9, 1e-8)
    weights = list(model.parameters())
    assert_same(
        torch.autograd.grad(result.value, weights),
        torch.autograd.grad(expected, weights),
        1e-9,
        1e-7,
    )
    assert set(result.parts) == {"hinge", "scaled_entropy"} and result.hidden is None


def test_the_hinge_is_one_where_misclassified_and_zero_from_the_certified_margin_on():
    model, (x, y) = network(), batch(64)
    bounded = BoundedModule(model.eval())
    loss = DistanceLoss([PerturbationLinf(EPS)], lambda_start=0, lambda_end=0)
    result = loss(bounded, x, y)
    hinge, logits = result.per_example[0], model(x)
    wrong = logits.argmax(1) != y
    assert bool((hinge[wrong] == 1).all()) and bool(wrong.any())
    proved = (result.margins[0] >= 0).all(1)
    assert torch.equal(hinge == 0, proved)
    assert loss.eps_train == pytest.approx(1.5 * EPS)


def test_schedules_are_geometric_and_end_at_infinity():
    model = network()
    loss = build_loss("linf_dist", [PerturbationLinf(EPS)], relax_from=0.2, relax_to=0.8)
    result = []
    for share in (0.0, 0.2, 0.5, 0.79999, 0.8, 1.0):
        loss.advance(model, share)
        result.append((model[2].p, loss.weight))
    middle = (math.sqrt(8 * 1000), math.sqrt(0.05 * 0.0002))
    expected = [(8, 0.05), (8, 0.05), middle, (1000, 0.0002), (math.inf, 0.0002)]
    for item, other in zip(result, [*expected, expected[-1]]):
        assert item == pytest.approx(other, rel=1e-3)
    assert {layer.p for layer in model if isinstance(layer, LinfDistance)} == {math.inf}


def test_powers_of_two_only_where_asked_for():
    model = network()
    loss = DistanceLoss([PerturbationLinf(EPS)], powers_of_two=True)
    exponents = []
    for share in torch.linspace(0, 1, 50).tolist():
        loss.advance(model, share)
        exponents.append(model[2].p)
    finite = sorted({p for p in exponents if p < math.inf})
    assert finite == [8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]


def test_the_constant_is_that_of_the_limit_whatever_p_is():
    model, (x, y) = network(p=8), batch()
    bounded = BoundedModule(model.eval())
    loss = DistanceLoss([PerturbationLinf(EPS)], lambda_start=0, lambda_end=0)
    theta = 2 * 1.5 * EPS / STD
    lowest = loss(bounded, x, y).margins[0].amin(1)
    logits = model(x)
    rivals = logits.scatter(1, y[:, None], -math.inf).amax(1)
    assert_same(lowest, logits.gather(1, y[:, None]).squeeze(1) - rivals - theta)
    assert model[2].p == 8


def test_a_smaller_radius_narrows_the_hinge():
    model, (x, y) = network(), batch()
    bounded, loss = BoundedModule(model.eval()), DistanceLoss([PerturbationLinf(EPS)])
    half = DistanceLoss([PerturbationLinf(EPS / 2)])
    assert_same(loss(bounded, x, y, eps_scale=0.5).value, half(bounded, x, y).value)


BAD = {
    "no hinge": ({"eps_train": 0}, "eps_train=0 must be positive"),
    "negative radius": ({"eps_train": -0.1}, "eps_train=-0.1 must be positive"),
    "no radius": ({"eps_train": "0.1"}, "eps_train='0.1' must be positive"),
    "p below 1": ({"p_start": 0.5}, "p_start=0.5 must be a finite number of at least 1"),
    "p infinite": ({"p_end": math.inf}, "p_end=inf must be a finite number"),
    "order": ({"relax_from": 0.9, "relax_to": 0.5}, "relax_from=0.9, relax_to=0.5"),
    "no end": ({"relax_to": 1.0}, "less than 1: the last steps train at p = inf"),
    "share": ({"relax_from": 5}, "relax_from=5 must be a finite number.*at most 1"),
    "one zero": ({"lambda_end": 0}, "two positive numbers, or two zeros"),
}


@pytest.mark.parametrize("options, message", BAD.values(), ids=BAD)
def test_bad_options_are_named(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build_loss("linf_dist", [PerturbationLinf(EPS)], **options)


def test_a_set_of_radius_zero_has_no_hinge():
    with pytest.raises(InvalidArgumentError, match="eps_train=0.0 must be positive"):
        build_loss("linf_dist", [PerturbationLinf(0.0)])


def test_an_l_inf_set_is_needed():
    with pytest.raises(InvalidArgumentError, match="no set of norm inf"):
        build_loss("linf_dist", [PerturbationL2Box(EPS)])


def test_other_networks_and_mixtures_are_refused():
    loss, (x, y) = build_loss("linf_dist", [PerturbationLinf(EPS)]), batch()
    plain = build_model("mlp", (1, 4, 4), 3).double()
    with pytest.raises(InvalidArgumentError, match="no l_inf-distance layer.*linf_dist_mlp"):
        loss(BoundedModule(plain), x, y)
    mixed = nn.Sequential(nn.Flatten(), nn.Linear(16, 16).double(), *network()[2:])
    with pytest.raises(InvalidArgumentError, match="1.weight, 1.bias.*do not mix families"):
        loss(BoundedModule(mixed), x, y)
    unknown = nn.Sequential(network(), nn.Softmax(1))
    with pytest.raises(InvalidArgumentError, match="Softmax.*no finite Lipschitz constant"):
        loss(BoundedModule(unknown), x, y)


def test_wrong_labels_are_refused():
    loss, (x, _) = build_loss("linf_dist", [PerturbationLinf(EPS)]), batch()
    with pytest.raises(InvalidArgumentError, match="labels"):
        loss(BoundedModule(network()), x, torch.full((16,), 3))
