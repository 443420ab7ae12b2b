"""A graph that computes another function than its model is refused by name.

Bounds hold the model's own output.
"""

import copy
import functools
import math

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.audit.graphs import Lambda as Function
from lirpa_multinorm.bounds.containment import check_contained
from lirpa_multinorm.errors import UnsupportedModelError
from lirpa_multinorm.tracing.staleness import fingerprint
from tests.checks import assert_contains, assert_same, assert_sound, reached_by_attack


class Counter(nn.Module):
    """Counts its calls, and adds the count if it is told to."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.count = scale, 0

    def forward(self, x):
        self.count += 1
        return x + self.scale * self.count


def images(*first):
    torch.manual_seed(0)
    return nn.Sequential(*first, nn.Flatten(), nn.LazyLinear(3)), torch.rand(2, 2, 6, 6)


#: What the hosts trace as another function, and our own engine reads as it is.
MISREAD = {
    "average pooling without padded zeros": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average pooling with another divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
    "average pooling rounded up": lambda: nn.AvgPool2d(4, 4, ceil_mode=True),
    "max pooling rounded up": lambda: nn.MaxPool2d(4, 4, ceil_mode=True),
    "dilated max pooling": lambda: nn.MaxPool2d(2, 2, dilation=2),
}
OTHER_FUNCTIONS = {
    "branch on values": lambda: Function(lambda x: x if x.sum() > 0 else -x),
    "Dropout that is always on": lambda: Function(lambda x: F.dropout(x, 0.5, True)),
    "noise": lambda: Function(lambda x: x + torch.randn_like(x)),
    "counter": lambda: Counter(0.1),
    "mean over the batch": lambda: Function(lambda x: x - x.mean(0, keepdim=True)),
    "BatchNorm without running statistics": lambda: nn.BatchNorm2d(2, track_running_stats=False),
}


@functools.cache
def misread(name, radius):
    """A network, inputs, and sets with what an attack reaches in each."""
    model, x = images(MISREAD[name]())
    model.eval()(x)
    sets = [PerturbationLinf(radius), PerturbationL2Box(radius)]
    return model, x, list(zip(sets, reached_by_attack(model, x, sets)))


@pytest.mark.filterwarnings("ignore:model:UserWarning")
@pytest.mark.parametrize("radius", [0.0, 0.1])
@pytest.mark.parametrize(
    "method", ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized", "Lipschitz", "SDP-CROWN"]
)
@pytest.mark.parametrize("name", MISREAD)
def test_what_the_host_misreads_is_bounded_by_our_engine(name, method, radius):
    model, x, attacked = misread(name, radius)
    few_steps = {"optimize_bound_args": {"iteration": 5}}
    for ball, reached in attacked:
        bounded = BoundedModule(model, perturbations=[ball], bound_opts=few_steps)
        bounds = bounded.compute_bounds(x, method=method)
        assert_contains(bounds, reached)
        if radius == 0:
            assert_same(bounds, [model(x)] * 2, atol=1e-4)


def test_what_the_host_misreads_is_said():
    model, x = images(MISREAD["average pooling with another divisor"]())
    model.eval()(x)
    with pytest.warns(UserWarning, match="computes another function.*using IBP of this package"):
        BoundedModule(model, perturbations=[PerturbationLinf(0.1)]).compute_bounds(x, method="IBP")


@pytest.mark.parametrize("method", ["IBP", "CROWN", "SDP-CROWN"])
@pytest.mark.parametrize("name", OTHER_FUNCTIONS)
def test_another_function_is_refused(name, method):
    model, x = images(OTHER_FUNCTIONS[name]())
    model.eval()(x)
    with pytest.raises(UnsupportedModelError, match="model"):
        BoundedModule(model, perturbations=[PerturbationLinf(0.0)]).compute_bounds(x, method=method)


def test_the_message_names_the_module():
    model, x = images(nn.Conv2d(2, 2, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False))
    with pytest.raises(UnsupportedModelError, match=r"AvgPool2d\(kernel_size=3.* at '1'"):
        BoundedModule(model.eval(), perturbations=[PerturbationLinf(0.1)])(x)


def test_the_check_leaves_model_and_generator_alone():
    model, x = images(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3))
    model(x)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.1)])
    bounded.output_shape(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training


def test_a_harmless_counter_is_traced_once(traces):
    model, x = images(Counter(0.0))
    model(x)
    bounded = BoundedModule(model.eval(), perturbations=[PerturbationLinf(0.1)])
    bounded.compute_bounds(x, method="IBP")
    traces.clear()
    bounded.compute_bounds(x, method="IBP")
    assert not traces


def test_the_shape_of_an_output_does_not_run_a_traced_model():
    """The losses ask for it in every step."""
    model, x = images(Counter(0.0))
    model(x)
    bounded = BoundedModule(model.eval(), perturbations=[PerturbationLinf(0.1)])
    assert bounded.output_shape(x) == (3,)
    before = model[0].count
    assert bounded.output_shape(x) == (3,) and model[0].count == before


class Shifted(nn.Module):
    """Subtracts constants held in several ways."""

    def __init__(self):
        super().__init__()
        self.linear, self.slope = nn.Linear(72, 3), nn.LeakyReLU(0.1)
        self.mean, self.scales, self.array = torch.tensor(0.1), [1.0, 2.0], numpy.float32([0.5])

    def forward(self, x):
        x = (x.flatten(1) - self.mean) * self.scales[1] + torch.from_numpy(self.array).to(x)
        return self.slope(self.linear(x))


CHANGES = {
    "plain tensor": lambda model: setattr(model, "mean", torch.tensor(0.9)),
    "plain tensor in place": lambda model: model.mean.add_(1.0),
    "list": lambda model: model.scales.__setitem__(1, 5.0),
    "array in place": lambda model: model.array.__setitem__(0, 3.0),
    "slope": lambda model: setattr(model.slope, "negative_slope", 0.7),
    "layer": lambda model: setattr(model, "linear", nn.Linear(72, 3)),
    "hook": lambda model: (
        model.linear.register_forward_hook(lambda *given: given[2] + 2.0) and None
    ),
    "pre-hook": lambda model: (
        model.linear.register_forward_pre_hook(lambda _, given: (3 * given[0],)) and None
    ),
    "weight in place": lambda model: model.linear.weight.data.mul_(2.0),
}


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_is_traced_anew(name, method):
    torch.manual_seed(0)
    model, x, ball = Shifted().eval(), torch.rand(2, 2, 6, 6), PerturbationL2Box(0.2)
    bounded = BoundedModule(model, perturbations=[ball])
    bounded.compute_bounds(x, method=method)
    CHANGES[name](model)
    bounds = bounded.compute_bounds(x, method=method)
    expected = BoundedModule(model, perturbations=[ball]).compute_bounds(x, method=method)
    assert_same(bounds, expected, 0, 0)
    assert_sound(model, x, ball, bounds)


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: setattr(layers[0], "padding", (0, 0)),
        lambda layers: setattr(layers[1], "eps", 2.0),
    ],
)
def test_options_of_layers_are_followed(change):
    model, x = images(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(2)
    )
    model.eval()(x)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.05)])
    bounded.compute_bounds(x, method="CROWN")
    change(model)
    bounds = bounded.compute_bounds(x, method="CROWN")
    assert_sound(model, x, bounded.perturbations[0], bounds)


@pytest.mark.parametrize(
    "methods", [["SDP-CROWN", "IBP"], ["IBP", "SDP-CROWN", "IBP"], ["SDP-CROWN", "SDP-CROWN"]]
)
def test_a_change_that_no_fingerprint_shows_is_seen_in_the_bounds(methods):
    shift = [0.0]
    model, x = nn.Sequential(Function(lambda x: x + shift[0]), nn.Linear(4, 3)), torch.rand(2, 4)
    bounded = BoundedModule(model.eval(), perturbations=[PerturbationLinf(0.01)])
    for method in methods[:-1]:
        bounded.compute_bounds(x, method=method)
    bounded(x)
    shift[0] = 5.0
    with pytest.raises(UnsupportedModelError, match="leave out the model's own output"):
        bounded.compute_bounds(x, method=methods[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("method", ["IBP", "CROWN", "Sparse-CROWN"])
def test_outputs_that_cancel_to_nothing_are_bounded(dtype, eps, method):
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2)
    ).to(dtype)
    x = torch.rand(2, 4, dtype=dtype)
    with torch.no_grad():  # the first output is zero at the first input but for rounding
        model[-1].bias -= model(x)[0]
        assert float(model(x)[0].abs().max()) < 100 * torch.finfo(dtype).eps
    lower, upper = BoundedModule(model, perturbations=[PerturbationLinf(eps)]).compute_bounds(
        x, method=method
    )
    with torch.no_grad():
        output, slack = model(x), 100 * torch.finfo(dtype).eps
    assert bool(((lower <= output + slack) & (output <= upper + slack)).all())


def test_a_bound_beside_an_output_that_cancels_is_refused():
    model, x = nn.Linear(2, 1), torch.ones(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -1.0]]))
        model.bias.zero_()
    near = torch.full((1, 1), 1e-7)
    check_contained(model, (x,), None, near, near, "IBP")
    with pytest.raises(UnsupportedModelError, match="leave out"):
        check_contained(model, (x,), None, 1e5 * near, 1e5 * near, "IBP")


def test_fingerprint_is_equal_for_what_does_not_matter():
    layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = fingerprint(layers.modules())
    layers.eval()
    layers[0].weight.data.add_(1.0)
    assert fingerprint(layers.modules()) == before


@pytest.mark.parametrize(
    "lower, upper, fine",
    [
        (0.9, 1.1, True),
        (1.0, 1.0, True),
        (1.1, 1.2, False),
        (0.8, 0.9, False),
        (math.nan, math.nan, True),
    ],
)
def test_check_contained(lower, upper, fine):
    model, x = nn.Identity(), torch.ones(1, 2)
    ends = [torch.full((1, 2), end) for end in (lower, upper)]
    if fine:
        assert check_contained(model, [x], None, *ends, "IBP") is None
    else:
        with pytest.raises(UnsupportedModelError, match="leave out"):
            check_contained(model, [x], None, *ends, "IBP")


@pytest.mark.parametrize(
    "value", [torch.tensor([0.1, 0.2]), numpy.array([0.1, 0.2])], ids=["tensor", "array"]
)
def test_plain_attributes_of_several_elements(value):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = value

        def forward(self, x):
            return x - torch.as_tensor(self.value).to(x)

    model, x = nn.Sequential(Shift(), nn.Linear(2, 3)), torch.rand(4, 2)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.0)])
    lower, _ = bounded.compute_bounds(x, method="IBP")
    assert torch.allclose(lower, model(x), atol=1e-6)
