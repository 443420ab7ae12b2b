"""In training mode the graph is the model's training function, or bounds are refused by name."""

import random
import warnings

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf, build_loss
from lirpa_multinorm.errors import InvalidArgumentError, UnsupportedModelError

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.1)]


class Training(nn.Module):
    """Does something in training mode only."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, x):
        return self.function(self, x) if self.training else x


def counted(layer, x):
    layer.calls += 1
    return x * (1 + layer.calls)


def counted_only(layer, x):
    layer.calls += 1
    return x


#: Another function in training than in eval mode, or none.
OTHERS = {
    "noise": lambda layer, x: x + torch.randn_like(x),
    "F.dropout": lambda layer, x: F.dropout(x, 0.3, layer.training),
    "drop path that seldom drops": lambda layer, x: x * float(torch.rand(()) > 1e-6),
    "Python's random numbers": lambda layer, x: x * (1 + (random.random() < 1e-6)),
    "NumPy's random numbers": lambda layer, x: x * float(numpy.random.rand() > 1e-6),
    "counter": counted,
    "scale": lambda layer, x: 1.5 * x,
    "mean over the batch": lambda layer, x: x - x.mean(0),
    "sign": lambda layer, x: -x,
}


def network(layer, batch_norm):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), layer, nn.Linear(8, 3))


def bound(bounded, x, how):
    bounded(x)
    if how == "loss":
        return build_loss("max", SETS)(bounded, x, torch.arange(len(x)) % 3).value
    return bounded.compute_bounds(x, method=how)[0]


ways = pytest.mark.parametrize("how", ["IBP", "CROWN", "loss"])
norms = pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "BatchNorm"])


@ways
@norms
@pytest.mark.parametrize("first", ["train", "eval"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_function_in_training_is_refused(name, first, batch_norm, how):
    model, x = network(Training(OTHERS[name]), batch_norm), torch.rand(16, 6)
    bounded = BoundedModule(model, perturbations=SETS).train(first == "train")
    if first == "eval":
        bounded.compute_bounds(x, method="IBP")
        bounded.train()
    with pytest.raises(UnsupportedModelError, match="(?s)model.*(training mode|random).*eval"):
        bound(bounded, x, how)
    bounded.eval()  # where it is a function
    assert torch.isfinite(bound(bounded, x, how)).all()
    assert torch.equal(bounded(x), model(x)) or torch.allclose(bounded(x), model(x), rtol=1e-5)


@ways
@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.2), nn.AlphaDropout(0.2), nn.RReLU(), nn.Dropout(1e-6)], ids=repr
)
def test_layers_that_draw_are_refused_in_training(layer, how):
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(UnsupportedModelError):
        bound(BoundedModule(model, perturbations=SETS).train(), torch.rand(8, 6), how)


@ways
@norms
@pytest.mark.parametrize(
    "layer",
    [nn.Identity(), nn.Dropout(0.0), nn.Dropout(0.5).eval(), Training(counted_only)],
    ids=["none", "Dropout of nothing", "Dropout in eval mode", "harmless counter"],
)
def test_the_same_function_is_bounded(layer, batch_norm, how):
    model, x = network(layer, batch_norm), torch.rand(16, 6)
    bounded = BoundedModule(model, perturbations=SETS).train()
    if isinstance(layer, nn.Dropout):
        layer.eval()
    if how == "loss":
        assert torch.isfinite(bound(bounded, x, how))
        return
    bounded(x)
    lower, upper = bounded.compute_bounds(x, method=how)
    output = model(x)
    assert bool(((lower <= output + 1e-5) & (output <= upper + 1e-5)).all())


def test_a_harmless_counter_costs_no_trace_in_each_step(traces):
    model, x = network(Training(counted_only), True), torch.rand(16, 6)
    bounded = BoundedModule(model, perturbations=SETS).train()
    for _ in range(5):
        bound(bounded, x, "loss")
    assert 1 <= len(traces) <= 2


@pytest.mark.parametrize("change", ["hook", "mode", "module", "weight"])
def test_what_changes_is_compared_again(change):
    model, x = network(nn.Identity(), True), torch.rand(16, 6)
    model[3] = Training(lambda layer, x: 2 * x).eval()
    bounded = BoundedModule(model, perturbations=SETS).train()
    model[3].eval()
    bound(bounded, x, "IBP")
    if change == "weight":
        model[0].weight.data.mul_(2)
        assert torch.isfinite(bound(bounded, x, "IBP")).all()
        return
    if change == "hook":
        model[2].register_forward_hook(
            lambda layer, inputs, output: output * 2 if layer.training else output
        )
    elif change == "mode":
        model[3].train()
    else:
        model[2] = Training(lambda layer, x: x.abs())
    with pytest.raises(UnsupportedModelError, match="training mode"):
        bound(bounded, x, "IBP")


def test_the_check_leaves_generators_buffers_and_statistics_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x

    model, x = network(Counting(), True), torch.rand(16, 6)
    bounded = BoundedModule(model, perturbations=SETS).train()
    bounded(x)
    before = [buffer.clone() for buffer in model.buffers()]
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].tolist()
    bounded.compute_bounds(x, method="IBP")
    assert all(map(torch.equal, model.buffers(), before))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert numpy.random.get_state()[1].tolist() == states[2]


def test_a_layer_called_twice_has_statistics_of_each_call():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(6, 6), norm, nn.Linear(6, 3)

        def forward(self, x):
            return self.second(self.norm(self.first(self.norm(3 * x)).relu()))

    model, x = Twice(), torch.rand(16, 6)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.0)]).train()
    bounded(x)
    lower, upper = bounded.compute_bounds(x, method="IBP")
    with torch.no_grad():
        output = model(x)
    assert torch.allclose(lower, output, atol=1e-5) and torch.allclose(upper, output, atol=1e-5)


def test_a_clean_pass_is_needed_for_statistics():
    model, x = network(nn.Identity(), True), torch.rand(16, 6)
    bounded = BoundedModule(model, perturbations=SETS).train()
    with pytest.raises(InvalidArgumentError, match="clean pass.*bounded.x."):
        bounded.compute_bounds(x, method="IBP")
    bounded(x)
    first = bounded.compute_bounds(x[:3], method="IBP")[0]
    bounded(2 * x)
    assert not torch.allclose(first, bounded.compute_bounds(x[:3], method="IBP")[0])


@pytest.mark.parametrize("method", ["Lipschitz", "Sparse-CROWN", "SDP-CROWN"])
def test_methods_of_eval_mode_refuse_batch_norm_in_training(method):
    model, x = network(nn.Identity(), True), torch.rand(16, 6)
    bounded = BoundedModule(model, perturbations=SETS).train()
    bounded(x)
    with pytest.raises(UnsupportedModelError, match="training mode"):
        bounded.compute_bounds(x, method=method)


def test_a_forward_that_holds_its_batch_size_is_traced_once_in_a_loop(traces):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 3)

        def forward(self, x):
            return self.layer(x.reshape(x.size(0), 16))

    model, y = Sized(), torch.arange(8) % 3
    bounded, loss = BoundedModule(model, perturbations=SETS).train(), build_loss("max", SETS)
    for _ in range(4):
        x = torch.rand(8, 1, 4, 4)
        bounded(x)
        loss(bounded, x, y).value.backward()
    assert 1 <= len(traces) <= 4  # one input, the batch, and both sets of it
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        bounded.eval().compute_bounds(x[:3], method="IBP")
    # The newer host keeps no size of such a reshape.
    assert len(traces) == 1 or any("number of inputs" in str(item.message) for item in said)


def test_a_batch_of_one_is_refused_by_batch_norm():
    bounded = BoundedModule(network(nn.Identity(), True), perturbations=SETS).train()
    with pytest.raises(InvalidArgumentError, match="^x: BatchNorm.*larger batches"):
        bounded(torch.rand(1, 6))


@pytest.mark.parametrize("how", ["IBP", "loss"])
@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_buffers_of_the_newer_kind(mode, how):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Buffer(torch.linspace(-1, 1, 8))

        def forward(self, x):
            return x - self.shift

    model, x = (
        nn.Sequential(nn.Linear(6, 8), Shift(), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(8, 3)),
        torch.rand(16, 6),
    )
    model(x)
    bounded = BoundedModule(model, perturbations=SETS).train(mode)
    first = bound(bounded, x, how)
    model[1].shift.mul_(2)
    assert torch.isfinite(first).all() and not torch.allclose(first, bound(bounded, x, how))


class Late(nn.Module):
    """A Dropout after a warm-up."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return F.dropout(x, 0.5) if self.training and self.calls > 50 else x


class Depth(nn.Module):
    """Stochastic depth with a generator of its own."""

    def __init__(self):
        super().__init__()
        self.random, self.layer = random.Random(0), nn.Linear(8, 8)

    def forward(self, x):
        return x if self.training and self.random.random() < 0.3 else x + self.layer(x)


@norms
@pytest.mark.parametrize("layer", [Late, Depth])
def test_what_begins_later_is_found_later(layer, batch_norm):
    bounded, y = (
        BoundedModule(network(layer(), batch_norm), perturbations=SETS).train(),
        torch.arange(16) % 3,
    )
    loss = build_loss("ibp", SETS)
    with pytest.raises(UnsupportedModelError, match="random|two calls|leave out"):
        for _ in range(200):
            loss(bounded, torch.rand(16, 6), y)
