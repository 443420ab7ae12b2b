"""Bounds of BoundedModule against numbers worked out by hand, and over several sets and regions."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    host,
    margin_matrix,
)
from lirpa_multinorm.perturbations import Region
from tests.bounds.small_network import (
    BATCH,
    METHODS,
    OPTIONS,
    SETS,
    bounds_of,
    every_method,
    images,
    network,
)
from tests.checks import assert_same

# --- hand-worked numbers --------------------------------------------------------------------------

# z = (x1 - x2 + 0.05, x1 + x2 - 0.95), y = (relu z1 + relu z2, relu z1 - relu z2) at x = (0.5,
# 0.5), so z = 0.05 +- r with r = 0.2 (l_inf), 0.1 sqrt 2 (l_2), 0.1 (l_1). IBP: relu z in [0, 0.05
# + r]. CROWN: the upper line is s z + t with s = (0.05 + r) / 2r and t = s (r - 0.05), the lower
# line z, as the upper end is the farther one. upper y1 = s (2 x1 - 0.9) + 2t, lower y1 = 2 x1 - 0.9
# = 0.1 - 0.2 in every norm; upper y2 = s z1 + t - z2 has coefficients (s - 1, -s - 1); lower y2 is
# minus that.
_ROOT = math.sqrt(2)
HAND = {
    ("linf", "IBP"): ((0.0, -0.25), (0.5, 0.25)),
    ("l2", "IBP"): ((0.0, -0.05 - 0.1 * _ROOT), (0.1 + 0.2 * _ROOT, 0.05 + 0.1 * _ROOT)),
    ("l1", "IBP"): ((0.0, -0.15), (0.3, 0.15)),
    ("linf", "CROWN"): ((-0.1, -0.275), (0.375, 0.275)),  # s = 0.625, t = 0.09375
    ("l2", "CROWN"): ((-0.1, -0.2164752), (0.3267767, 0.2164752)),  # s = 0.6767767, t = 0.0618718
    ("l1", "CROWN"): ((-0.1, -0.2), (0.3, 0.2)),  # s = 0.75, t = 0.0375
}
BALLS = {"linf": PerturbationLinf(0.1), "l2": PerturbationL2Box(0.1), "l1": PerturbationL1Box(0.1)}


def hand_network():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.05, -0.95]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        model[2].bias.zero_()
    return model


@pytest.mark.parametrize("norm,method", HAND, ids=["-".join(key) for key in HAND])
@pytest.mark.parametrize("clip", [(0.0, 1.0), None], ids=["clip", "ball"])
def test_hand_numbers(norm, method, clip):
    ball = PerturbationLpBox(BALLS[norm].norm, 0.1, clip)
    bounds = bounds_of(
        BoundedModule(hand_network(), perturbations=[ball]), torch.full((1, 2), 0.5), method
    )
    assert_same(bounds, [torch.tensor([end]) for end in HAND[norm, method]])


@pytest.mark.parametrize(
    "names", [("linf", "l2", "l1"), ("l1", "l2"), ("l2", "linf")], ids="+".join
)
@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_hand_numbers_of_the_union(names, method):
    bounded = BoundedModule(hand_network(), perturbations=[BALLS[name] for name in names])
    expected = [
        torch.tensor([HAND[name, method] for name in names]).amin(0)[0],
        torch.tensor([HAND[name, method] for name in names]).amax(0)[1],
    ]
    assert_same(
        bounds_of(bounded, torch.full((1, 2), 0.5), method), [end.unsqueeze(0) for end in expected]
    )


def test_hand_numbers_where_clip_cuts():
    """x = (0.5, 1), where x2 can only fall.

    So l_2 moves (0.06, -0.08) for x1 - x2 but only 0.1 along x1 for x1 + x2.
    """
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.tensor([[3.0, -4.0], [3.0, 4.0]]))
    lower, upper = bounds_of(
        BoundedModule(model, perturbations=[BALLS["l2"]]), torch.tensor([[0.5, 1.0]])
    )
    assert torch.allclose(upper, torch.tensor([[-2.5 + 0.5, 5.5 + 0.3]]))
    assert torch.allclose(lower, torch.tensor([[-2.5 - 0.3, 5.5 - 0.5]]))


# --- sets and regions -----------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("specification", [False, True], ids=["outputs", "margins"])
def test_union_is_the_worst_of_the_sets(method, specification):
    x = images()
    bounded = BoundedModule(
        network(), perturbations=SETS + [PerturbationL1Box(0.8)], bound_opts=OPTIONS
    )
    C = margin_matrix(torch.arange(BATCH) % 3, 3) if specification else None
    torch.manual_seed(0)
    per_set = bounded.compute_norm_bounds(x, C=C, method=method)
    torch.manual_seed(0)
    lower, upper = bounded.compute_bounds(x, C=C, method=method)
    assert len(per_set) == 3 and lower.shape == (BATCH, 2 if specification else 3)
    assert_same(
        (lower, upper),
        (
            torch.stack([item for item, _ in per_set]).amin(0),
            torch.stack([item for _, item in per_set]).amax(0),
        ),
    )
    # No set alone decides everywhere, or the union would not be tested.
    assert any(not torch.allclose(lower, item) for item, _ in per_set)


@pytest.mark.parametrize("method", METHODS[:3])
def test_each_set_as_if_it_were_alone(method):
    x, balls = images(), SETS + [PerturbationL1Box(0.8), PerturbationL2Box(0.3, clip=None)]
    model = network()
    together = BoundedModule(model, perturbations=balls).compute_norm_bounds(x, method=method)
    for ball, bounds in zip(balls, together):
        assert_same(bounds_of(BoundedModule(model, perturbations=[ball]), x, method), bounds)


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_regions_of_different_batch_sizes(method):
    x, y = images(), torch.arange(BATCH) % 3
    bounded = BoundedModule(network())
    regions = [Region(x[:1], SETS[0]), Region(x[1:], SETS[1]), (x, SETS[1])]
    specifications = [margin_matrix(labels, 3) for labels in (y[:1], y[1:], y)]
    result = bounded.compute_region_bounds(regions, C=specifications, method=method)
    assert [tuple(lower.shape) for lower, _ in result] == [(1, 2), (3, 2), (4, 2)]
    assert_same(result[1], [end[1:] for end in result[2]])
    for (center, ball), C, bounds in zip(regions, specifications, result):
        assert_same(
            bounds,
            bounds_of(BoundedModule(bounded.model, perturbations=[ball]), center, method, C=C),
        )


def test_sets_of_the_host_and_per_example_radii():
    x, eps = images(), torch.tensor([0.0, 0.1, 0.2, 0.3])
    sets = [host.PerturbationLpNorm(norm=math.inf, eps=0.05), PerturbationL2Box(eps, clip=None)]
    model = network()
    (_, _), (lower, upper) = BoundedModule(model, perturbations=sets).compute_norm_bounds(
        x, method="CROWN"
    )
    width = (upper - lower).detach().mean(1)
    assert width[0] < 1e-4 and (width[1:] > width[:-1]).all()
    for index, radius in enumerate(eps.tolist()):
        alone = BoundedModule(model, perturbations=[PerturbationL2Box(radius, clip=None)])
        assert_same(
            bounds_of(alone, x[index : index + 1], "CROWN"),
            (lower[index : index + 1], upper[index : index + 1]),
        )


# --- arguments ------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("kept", [0, 1], ids=["lower", "upper"])
def test_one_side_only(method, kept):
    bounded, x = BoundedModule(network(), perturbations=SETS, bound_opts=OPTIONS), images()
    C = margin_matrix(torch.arange(BATCH) % 3, 3)
    both = bounds_of(bounded, x, method, C=C)
    flags = {"bound_upper": False} if kept == 0 else {"bound_lower": False}
    single = bounded.compute_bounds(x, C=C, method=method, **flags)
    tolerance = 0.05 if method == "CROWN-Optimized" else 1e-5  # other slopes are optimised
    assert torch.allclose(single[kept], both[kept], atol=tolerance)
    if method != "IBP":  # interval arithmetic gets both for the price of one
        assert single[1 - kept] is None or not torch.isfinite(single[1 - kept]).all()


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "sliced": lambda x: torch.cat([x, x], dim=3)[..., :4],
    "expanded": lambda x: x[:1].expand(BATCH, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("graph", ["conv", "mlp"])
@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_memory_layout_of_the_inputs(graph, layout, method):
    features = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()] if graph == "conv" else []
    model = nn.Sequential(
        *features, nn.Flatten(), nn.Linear(64 if features else 32, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    x = layout(images())
    assert not x.is_contiguous()
    expected = bounds_of(BoundedModule(model, perturbations=SETS), x.contiguous(), method)
    assert_same(bounds_of(BoundedModule(model, perturbations=SETS), x, method), expected)


def test_inputs_that_require_grad_are_left_alone():
    bounded, x = BoundedModule(network(), perturbations=SETS), images().requires_grad_()
    expected = bounds_of(bounded, images())
    assert_same(bounds_of(bounded, x), expected)
    assert x.requires_grad and x.grad is None


METHOD_NAMES = {
    "ibp": "IBP",
    "CROWN-ibp": "CROWN-IBP",
    "IBP+backward": "CROWN-IBP",
    "Backward": "CROWN",
    "alpha-CROWN": "CROWN-Optimized",
}


@pytest.mark.parametrize("name,method", METHOD_NAMES.items(), ids=METHOD_NAMES)
def test_names_of_methods(name, method):
    bounded, x = BoundedModule(network(), perturbations=SETS, bound_opts=OPTIONS), images()
    assert_same(bounds_of(bounded, x, name), bounds_of(bounded, x, method))
