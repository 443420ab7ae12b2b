"""Certification against exact truth, and never more than an attack allows."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    AttackSettings,
    CertifySettings,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    certify,
    pgd,
)
from lirpa_multinorm.attacks import margin_loss
from lirpa_multinorm.certification import (
    CERTIFIED,
    EVALUATION_ATTACK,
    FALSIFIED,
    METHODS,
    attacking,
)
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import cnn3, cnn_small, mlp
from tests.certification.small_network import (
    BOUNDS,
    NO_ATTACK,
    SETS,
    inputs,
    linear,
    lively,
    network,
    own_labels,
)
from tests.slow_support import dual_norm, farthest

# --- exact truth of a linear classifier -----------------------------------------------------------


def worst_margin(model, x, y, norm, eps, clip):
    """min over the set of f_y - max f_k.

    Exact, each row by the dual norm of the ball, or greedily with clip.
    """
    W, b = model[0].weight.detach(), model[0].bias.detach()
    worst = []
    for point, label in zip(x, y):
        rows = [(W[label] - W[k], b[label] - b[k]) for k in range(3) if k != label]
        worst.append(
            min(
                (a @ point + shift).item() - decrease(-a, point, norm, eps, clip)
                for a, shift in rows
            )
        )
    return torch.tensor(worst, dtype=x.dtype)


def decrease(a, point, norm, eps, clip):
    """max a.d over the set."""
    if clip is None:
        return eps * dual_norm(a, norm).item()
    return farthest(a, clip[0] - point, clip[1] - point, eps, norm).item()


@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
@pytest.mark.parametrize(
    "norm, eps", [(math.inf, 0.06), (2, 0.15), (1, 0.35)], ids=["linf", "l2", "l1"]
)
@pytest.mark.parametrize("methods", [("IBP",), ("CROWN",), METHODS], ids=["ibp", "crown", "all"])
def test_linear_classifiers_are_certified_exactly_where_they_are_robust(norm, eps, clip, methods):
    model, x = linear(), inputs(60).double()
    y = own_labels(model, x)
    truth = worst_margin(model, x, y, norm, eps, clip)
    assert (truth.abs() > 1e-9).all()  # no input sits on the boundary
    result = certify(
        model, x, y, [PerturbationLpBox(norm, eps, clip)], CertifySettings(methods, None)
    )
    assert 5 < int((truth > 0).sum()) < 55  # both kinds occur
    assert result.is_status(CERTIFIED)[0].tolist() == (truth > 0).tolist()
    right = model(x).argmax(1) == y
    assert torch.allclose(result.margin[0][right].double(), truth[right], atol=1e-6)


def test_certified_radius_of_a_linear_classifier():
    """Just below the exact l_2 distance to the boundary all is certified, just above nothing is."""
    model, x = linear(), inputs(10).double()
    y = model(x).argmax(1)
    W, z = model[0].weight.detach(), model(x).detach()
    radius = torch.stack(
        [
            min((z[i, y[i]] - z[i, k]) / (W[y[i]] - W[k]).norm() for k in range(3) if k != y[i])
            for i in range(10)
        ]
    )
    for factor, share in ((1 - 1e-6, 1.0), (1 + 1e-6, 0.0)):
        result = certify(model, x, y, [PerturbationL2Box(radius * factor, clip=None)], NO_ATTACK)
        assert result.summary()["certified"] == [share]


# --- soundness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, options",
    [(mlp, {}), (cnn_small, {"width": 4}), (cnn3, {"width": 4})],
    ids=["mlp", "cnn", "batch_norm"],
)
def test_no_certificate_is_broken_by_a_strong_attack(make, options):
    torch.manual_seed(2)
    x = torch.rand(40, 1, 4, 4)
    model = lively(make((1, 4, 4), 3, **options), x)
    y = model(x).argmax(1)
    sets = [PerturbationLinf(0.03), PerturbationL2Box(0.08), PerturbationL1Box(0.2)]
    result = certify(model, x, y, sets, NO_ATTACK)
    certified = result.is_status(CERTIFIED)
    assert certified.any() and not certified.all()
    points = pgd(model, x, y, sets, AttackSettings(steps=100, restarts=5))
    for broken, row in zip([margin_loss(model(point), y) >= 0 for point in points], certified):
        assert not (broken & row).any()


def test_margins_bound_what_an_attack_reaches():
    torch.manual_seed(2)
    model, x = network(), inputs(30)
    y = model(x).argmax(1)
    result = certify(model, x, y, SETS, NO_ATTACK)
    for points, margins in zip(
        pgd(model, x, y, SETS, AttackSettings(steps=60, restarts=3)), result.margin
    ):
        assert (-margin_loss(model(points), y) >= margins - 1e-5).all()


def test_falsified_means_an_adversarial_example_is_there():
    torch.manual_seed(2)
    model, x = network(), inputs(30)
    y, sets = model(x).argmax(1), [PerturbationLinf(0.2), PerturbationL2Box(0.2)]
    result = certify(model, x, y, sets, CertifySettings(BOUNDS))
    falsified = result.is_status(FALSIFIED)
    assert falsified.any() and not falsified.all()
    assert set(result.adversarial) == {tuple(pair) for pair in falsified.nonzero().tolist()}
    for (place, image), point in result.adversarial.items():
        assert (
            sets[place].contains(point[None], x[image : image + 1]).all()
            and model(point).argmax() != y[image]
        )


def test_points_outside_the_set_falsify_nothing(monkeypatch):
    """An attack that cheats is not believed."""
    model, x = linear(torch.float32), inputs(20)
    y = model(x).argmax(1)
    monkeypatch.setattr(
        attacking,
        "attack_regions",
        lambda _, regions, *rest: [item.center.flip(0) for item in regions],
    )
    result = certify(model, x, y, [PerturbationLinf(1e-4)])
    assert not result.is_status(FALSIFIED).any()


@pytest.mark.parametrize("attack", [None, EVALUATION_ATTACK], ids=["no_attack", "attack"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("layer", [0, 2, 4])
def test_broken_weights_are_refused_by_name(layer, value, attack):
    model, x = network(), inputs(10)
    y = model(x).argmax(1)
    with torch.no_grad():
        model[layer].weight[0, 0] = value
    kind = "NaN" if math.isnan(value) else "infinite values"
    with pytest.raises(InvalidArgumentError, match=rf"parameter {layer}\.weight holds {kind}"):
        certify(model, x, y, SETS, CertifySettings(attack=attack))


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_broken_statistics_are_refused_by_name(name):
    model, x = (
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval(),
        inputs(4),
    )
    getattr(model[1], name)[3] = math.nan
    with pytest.raises(InvalidArgumentError, match=rf"buffer 1\.{name} holds NaN"):
        certify(model, x, torch.zeros(4, dtype=torch.long), SETS)


def test_an_infinite_mask_is_no_broken_weight():
    model, x = nn.Sequential(nn.Linear(6, 3)), inputs(4)
    model.register_buffer("mask", torch.tensor(-math.inf))
    result = certify(model, x, model(x).argmax(1), [PerturbationLinf(1e-5)])
    assert result.is_status(CERTIFIED).all()
