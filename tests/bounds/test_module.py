"""BoundedModule: what torch users expect of it, and agreement with the host and with numbers worked out by hand."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from lirpa_multinorm import (BoundedModule, PerturbationL1Box, PerturbationL2Box, PerturbationLinf, PerturbationLpBox,
                             host, margin_matrix)
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.audit import build_graph, largest_violation
from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.errors import UnsupportedModelError
from lirpa_multinorm.perturbations import Region

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.3)]
METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
every_method = pytest.mark.parametrize("method", METHODS)
OPTIONS = {"optimize_bound_args": {"iteration": 3}}
BATCH = 4


def network(norm=False):
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(),
                         nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def images(batch=BATCH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, 2, 4, 4, generator=generator) * 1.4 - 0.2).clamp(0, 1)


def bounds_of(bounded, x, method="IBP", **options):
    return tuple(end.detach().clone() for end in bounded.compute_bounds(x, method=method, **options))


def assert_same(one, other, tolerance=1e-5):
    for first, second in zip(one, other):
        assert torch.allclose(first, second, atol=tolerance)


def differs(one, other):
    return any(not torch.allclose(first, second, atol=1e-4) for first, second in zip(one, other))


# --- hand-worked numbers --------------------------------------------------------------------------------------------

# z = (x1 - x2 + 0.05, x1 + x2 - 0.95), y = (relu z1 + relu z2, relu z1 - relu z2) at x = (0.5, 0.5), so z = 0.05 +- r
# with r = 0.2 (l_inf), 0.1 sqrt 2 (l_2), 0.1 (l_1). IBP: relu z in [0, 0.05 + r]. CROWN: the upper line is s z + t with
# s = (0.05 + r) / 2r and t = s (r - 0.05), the lower line z, as the upper end is the farther one.
#   upper y1 = s (2 x1 - 0.9) + 2t, lower y1 = 2 x1 - 0.9 = 0.1 - 0.2 in every norm;
#   upper y2 = s z1 + t - z2 has coefficients (s - 1, -s - 1); lower y2 is minus that.
_ROOT = math.sqrt(2)
HAND = {
    ("linf", "IBP"): ((0., -0.25), (0.5, 0.25)),
    ("l2", "IBP"): ((0., -0.05 - 0.1 * _ROOT), (0.1 + 0.2 * _ROOT, 0.05 + 0.1 * _ROOT)),
    ("l1", "IBP"): ((0., -0.15), (0.3, 0.15)),
    ("linf", "CROWN"): ((-0.1, -0.275), (0.375, 0.275)),  # s = 0.625, t = 0.09375
    ("l2", "CROWN"): ((-0.1, -0.2164752), (0.3267767, 0.2164752)),  # s = 0.6767767, t = 0.0618718
    ("l1", "CROWN"): ((-0.1, -0.2), (0.3, 0.2)),  # s = 0.75, t = 0.0375
}
BALLS = {"linf": PerturbationLinf(0.1), "l2": PerturbationL2Box(0.1), "l1": PerturbationL1Box(0.1)}


def hand_network():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1., -1.], [1., 1.]]))
        model[0].bias.copy_(torch.tensor([0.05, -0.95]))
        model[2].weight.copy_(torch.tensor([[1., 1.], [1., -1.]]))
        model[2].bias.zero_()
    return model


@pytest.mark.parametrize("norm,method", HAND, ids=["-".join(key) for key in HAND])
@pytest.mark.parametrize("clip", [(0., 1.), None], ids=["clip", "ball"])
def test_hand_numbers(norm, method, clip):
    ball = PerturbationLpBox(BALLS[norm].norm, 0.1, clip)
    bounds = bounds_of(BoundedModule(hand_network(), perturbations=[ball]), torch.full((1, 2), 0.5), method)
    assert_same(bounds, [torch.tensor([end]) for end in HAND[norm, method]])


@pytest.mark.parametrize("names", [("linf", "l2", "l1"), ("l1", "l2"), ("l2", "linf")], ids="+".join)
@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_hand_numbers_of_the_union(names, method):
    bounded = BoundedModule(hand_network(), perturbations=[BALLS[name] for name in names])
    expected = [torch.tensor([HAND[name, method] for name in names]).amin(0)[0],
                torch.tensor([HAND[name, method] for name in names]).amax(0)[1]]
    assert_same(bounds_of(bounded, torch.full((1, 2), 0.5), method), [end.unsqueeze(0) for end in expected])


def test_hand_numbers_where_clip_cuts():
    """x = (0.5, 1): x2 can only fall, so l_2 moves (0.06, -0.08) for x1 - x2 but only 0.1 along x1 for x1 + x2."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.tensor([[3., -4.], [3., 4.]]))
    lower, upper = bounds_of(BoundedModule(model, perturbations=[BALLS["l2"]]), torch.tensor([[0.5, 1.]]))
    assert torch.allclose(upper, torch.tensor([[-2.5 + 0.5, 5.5 + 0.3]]))
    assert torch.allclose(lower, torch.tensor([[-2.5 - 0.3, 5.5 - 0.5]]))


# --- tracing --------------------------------------------------------------------------------------------------------

def test_traces_on_first_use_only():
    bounded = BoundedModule(network(), perturbations=SETS)
    assert len(list(bounded.children())) == 0
    bounded.compute_bounds(images(), method="IBP")
    nodes = list(bounded.children())
    bounded.compute_bounds(images(2), method="CROWN")
    assert nodes and all(one is other for one, other in zip(nodes, bounded.children()))


def test_a_sample_traces_at_once():
    bounded = BoundedModule(network(), images(1), perturbations=SETS)
    assert len(list(bounded.children())) > 0
    assert_same(bounds_of(bounded, images()), bounds_of(BoundedModule(bounded.model, perturbations=SETS), images()))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch_norm"])
def test_tracing_leaves_no_traces(norm):
    """Neither statistics nor modes nor random numbers change, whatever the modes are."""
    model = network(norm).train()
    model[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    bounded = BoundedModule(model, images(1), perturbations=SETS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert bounded.training
    assert torch.equal(torch.get_rng_state(), state)


def test_output_is_the_models():
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS)
    assert torch.allclose(bounded(x), model(x), atol=1e-6)


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
@pytest.mark.parametrize("graph", ["conv", "view"])
def test_batch_size_may_change(graph, method):
    """Also where a reshape has baked the batch size of the trace into the graph."""
    model = build_graph(graph)
    x = torch.rand(5, 2, 6, 6)
    bounded = BoundedModule(model, perturbations=SETS)
    whole = bounds_of(bounded, x, method)
    for size in (1, 3, 5, 2):
        assert_same(bounds_of(bounded, x[:size], method), [end[:size] for end in whole])
        assert torch.allclose(bounded(x[:size]), model(x[:size]), atol=1e-5)


# --- parameters and state -------------------------------------------------------------------------------------------

def test_an_optimizer_built_before_the_first_use_trains_the_bounds():
    model, x = network(), images()
    bounded = BoundedModule(model, perturbations=SETS)
    ids = [id(parameter) for parameter in bounded.parameters()]
    assert ids == [id(parameter) for parameter in model.parameters()]
    optimizer = torch.optim.SGD(bounded.parameters(), lr=0.02)
    before = bounds_of(bounded, x)
    widths = []
    for _ in range(3):
        optimizer.zero_grad()
        lower, upper = bounded.compute_bounds(x, method="IBP")
        (upper - lower).mean().backward()
        widths.append((upper - lower).mean().item())
        optimizer.step()
    assert [id(parameter) for parameter in bounded.parameters()] == ids
    assert widths[2] < widths[1] < widths[0]
    assert differs(bounds_of(bounded, x), before)
    assert_same(bounds_of(bounded, x), bounds_of(BoundedModule(model, perturbations=SETS), x))


def test_gradients_equal_those_of_the_plain_formula():
    """Interval arithmetic written out in torch for l_inf, inside clip."""
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3)), images()
    lower, upper = BoundedModule(model, perturbations=[PerturbationLinf(0.1)]).compute_bounds(x, method="IBP")
    (2 * upper - lower).sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    lo, hi = (x - 0.1).clamp(0, 1).flatten(1), (x + 0.1).clamp(0, 1).flatten(1)
    for layer in (model[1], model[3]):
        centre, radius = layer((lo + hi) / 2), (hi - lo).div(2).matmul(layer.weight.abs().t())
        lo, hi = centre - radius, centre + radius
        if layer is model[1]:
            lo, hi = lo.relu(), hi.relu()
    assert_same((lower.detach(), upper.detach()), (lo.detach(), hi.detach()))
    (2 * hi - lo).sum().backward()
    assert_same(found, [parameter.grad for parameter in model.parameters()], 1e-4)


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_state_dict_is_the_models_both_ways(traced):
    bounded, x = BoundedModule(network(True), perturbations=SETS), images()
    if traced:
        bounded.compute_bounds(x, method="CROWN")
    plain = network(True)
    assert list(bounded.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in bounded.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in bounded.named_buffers()] == [name for name, _ in plain.named_buffers()]
    result = plain.load_state_dict(bounded.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.allclose(plain(x), bounded(x), atol=1e-6)
    other = network(True)
    other[1].running_mean.fill_(0.3)
    bounded.load_state_dict(other.state_dict())
    assert torch.allclose(bounded(x), other(x), atol=1e-6)
    assert_same(bounds_of(bounded, x, "CROWN"), bounds_of(BoundedModule(other, perturbations=SETS), x, "CROWN"))


def test_a_wrong_state_dict_is_refused_as_by_torch():
    bounded = BoundedModule(network(), perturbations=SETS)
    with pytest.raises(RuntimeError, match="Missing key"):
        bounded.load_state_dict({})


@every_method
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_frozen_parameters_stay_frozen(method, training):
    model = network().train(training)
    model[0].weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    bounded.compute_bounds(images(), method=method)
    bounded.train(not training).train(training)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_the_optimized_method_leaves_no_gradients_and_prints_nothing(grad, capsys):
    model = network()
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    with torch.set_grad_enabled(grad):
        lower, _ = bounded.compute_bounds(images(), C=margin_matrix(torch.zeros(BATCH).long(), 3),
                                          method="CROWN-Optimized")
        assert torch.is_grad_enabled() is grad
    assert lower.shape == (BATCH, 2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert capsys.readouterr().out == ""


def test_gradients_that_wait_survive_the_optimized_method():
    model = network()
    model(images()).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS).compute_bounds(images(), method="CROWN-Optimized")
    assert all(torch.equal(one, parameter.grad) for one, parameter in zip(before, model.parameters()))


def test_the_default_type_is_restored(monkeypatch):
    bounded, seen = BoundedModule(network().double(), perturbations=SETS), []

    def failing(*_, **__):
        seen.append(torch.get_default_dtype())
        raise RuntimeError("the host fails")

    bounded.compute_bounds(images().double(), method="CROWN")
    assert torch.get_default_dtype() == torch.float32
    monkeypatch.setattr(host.HostModule, "compute_bounds", failing)
    with pytest.raises(UnsupportedModelError, match="the host fails.*try another method"):
        bounded.compute_bounds(images().double(), method="CROWN")
    assert torch.get_default_dtype() == torch.float32 and set(seen) == {torch.float64}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
                         ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("method", ["IBP", "CROWN", "CROWN-Optimized"])
def test_copies_after_use(copied, method):
    bounded, x = BoundedModule(network(True), perturbations=SETS, bound_opts=OPTIONS), images()
    before = bounds_of(bounded, x, method)
    other = copied(bounded)
    assert type(other) is BoundedModule and other.training == bounded.training
    assert_same(bounds_of(other, x, method), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    if copied is not copy.copy:  # a shallow copy shares its tensors
        assert_same(bounds_of(bounded, x, method), before)
    assert differs(bounds_of(other, x, method), before)


MOVES = {"to": lambda m: m.to(torch.float64), "double": lambda m: m.double(),
         "to_device_and_type": lambda m: m.to("cpu", torch.float64)}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_moves(move, traced):
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS, bound_opts=OPTIONS)
    before = {method: bounds_of(bounded, x, method) for method in METHODS[:3]} if traced else None
    optimizer_ids = [id(parameter) for parameter in bounded.parameters()]
    assert move(bounded) is bounded
    assert [id(parameter) for parameter in bounded.parameters()] == optimizer_ids
    for method in METHODS:
        lower, upper = bounds_of(bounded, x.double(), method)
        assert lower.dtype == upper.dtype == torch.float64
        if traced and method in before:
            assert_same((lower.float(), upper.float()), before[method], 1e-4)
    assert torch.allclose(bounded(x.double()), model(x.double()))
    assert torch.get_default_dtype() == torch.float32


def test_double_and_back():
    bounded, x = BoundedModule(network(True), perturbations=SETS), images()
    before = bounds_of(bounded, x, "CROWN")
    bounded.double()
    bounds_of(bounded, x.double(), "CROWN")
    assert_same(bounds_of(bounded.float(), x, "CROWN"), before)


def _other_weight(model):
    model[6].weight = nn.Parameter(model[6].weight.detach() * 3)


def _assigned_state(model):
    model.load_state_dict({key: value * 2 if value.is_floating_point() else value.clone()
                           for key, value in model.state_dict().items()}, assign=True)


def _other_statistics(model):
    model[1].running_mean = model[1].running_mean + 0.3


CHANGES = {"parameter": _other_weight, "assigned_state": _assigned_state, "buffer": _other_statistics,
           "double": lambda model: model.double()}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tensors_replaced_behind_its_back(change):
    """A trace that went on with the old tensors would certify another network."""
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS)
    before = bounds_of(bounded, x, "CROWN")
    change(model)
    x = x.to(model[0].weight.dtype)
    assert torch.allclose(bounded(x), model(x), atol=1e-5)
    after = bounds_of(bounded, x, "CROWN")
    assert_same(after, bounds_of(BoundedModule(model, perturbations=SETS), x, "CROWN"))
    assert differs([end.float() for end in after], before) or x.dtype == torch.float64


class Wrapper(nn.Module):
    """A module around the bounded one, as the distributed trainers of torch put one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_layers_are_the_models(traced):
    model, x = network(True), images()
    bounded = BoundedModule(model, perturbations=SETS)
    if traced:
        bounded.compute_bounds(x, method="IBP")
    outer = Wrapper(bounded)
    names = ["inner." + name for name, _ in model.named_parameters()]
    assert [name for name, _ in outer.named_parameters()] == names
    assert [id(p) for p in outer.parameters()] == [id(p) for p in model.parameters()]
    assert list(outer.state_dict()) == ["inner." + key for key in model.state_dict()]
    assert [m for m in bounded.modules() if m is not bounded] == list(model.modules())
    seen = []
    assert bounded.apply(seen.append) is bounded
    assert set(seen) == set(model.modules())
    outer.train()
    assert all(module.training for module in model.modules())
    outer.double()
    assert bounded.compute_bounds(x.double(), method="IBP")[0].dtype == torch.float64


# --- modes and BatchNorm --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
def test_train_and_eval(traced):
    model = network(True)
    bounded = BoundedModule(model, perturbations=SETS)
    if traced:
        bounded.compute_bounds(images(), method="IBP")
    for call, mode in ((bounded.train, True), (bounded.eval, False), (lambda: bounded.train(False), False)):
        assert call() is bounded
        assert bounded.training is mode
        assert all(module.training is mode for module in model.modules())


def train_steps(forward, model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        x = images(seed=step)
        loss = nn.functional.cross_entropy(forward(x), torch.arange(BATCH) % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_batch_norm_statistics_follow_training_through_the_graph():
    plain = network(True).train()
    model = copy.deepcopy(plain)
    bounded = BoundedModule(model, perturbations=SETS)
    train_steps(plain, plain)
    train_steps(bounded, bounded)
    for key, value in plain.state_dict().items():
        assert torch.allclose(bounded.state_dict()[key].float(), value.float(), atol=1e-5), key
    x = images()
    assert torch.allclose(bounded.eval()(x), plain.eval()(x), atol=1e-5)
    assert_same(bounds_of(bounded, x), bounds_of(BoundedModule(plain, perturbations=SETS), x))


def test_bounds_in_training_leave_the_statistics_alone():
    model, x = network(True).train(), images()
    bounded = BoundedModule(model, perturbations=SETS)
    bounded(x)
    before = copy.deepcopy(model.state_dict())
    for method in ("IBP", "CROWN-IBP"):
        bounded.compute_bounds(x, method=method)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("sets", [SETS[:1], SETS], ids=["one_set", "two_sets"])
def test_bounds_in_training_use_the_statistics_of_the_last_clean_pass(sets):
    """Interval arithmetic by hand with mean and variance of the clean batch, for the l_inf set."""
    model, x = network(True).train(), images()
    bounded = BoundedModule(model, perturbations=sets)
    bounded(x)
    (found, *_) = bounded.compute_norm_bounds(x, method="IBP")
    conv, norm = model[0], model[1]
    clean = conv(x)
    mean, variance = clean.mean((0, 2, 3), keepdim=True), clean.var((0, 2, 3), unbiased=False, keepdim=True)
    scale = norm.weight.view(1, -1, 1, 1) / (variance + norm.eps).sqrt()
    lo, hi = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    centre = conv((lo + hi) / 2)
    radius = nn.functional.conv2d((hi - lo) / 2, conv.weight.abs(), padding=1)
    lo, hi = (((end - mean) * scale + norm.bias.view(1, -1, 1, 1)).relu().flatten(1)
              for end in (centre - radius, centre + radius))
    for layer in (model[4], model[6]):
        centre, radius = layer((lo + hi) / 2), ((hi - lo) / 2).matmul(layer.weight.abs().t())
        lo, hi = centre - radius, centre + radius
        if layer is model[4]:
            lo, hi = lo.relu(), hi.relu()
    assert_same([end.detach() for end in found], (lo.detach(), hi.detach()), 1e-4)


def test_a_frozen_batch_norm_stays_frozen_in_training():
    model, x = network(True).train(), images()
    model[1].eval()
    frozen = copy.deepcopy(model[1].state_dict())
    bounded = BoundedModule(model, perturbations=SETS)
    assert torch.allclose(bounded(x), model(x), atol=1e-5)
    bounds = bounds_of(bounded, x)
    assert all(torch.equal(value, frozen[key]) for key, value in model[1].state_dict().items())
    assert [module.training for module in model.modules()][:3] == [True, True, False]
    # Every other layer is the same in both modes, so are the bounds.
    assert_same(bounds, bounds_of(bounded.eval(), x))


def test_a_batch_norm_at_the_input_is_sound_in_training():
    """In training it is no constant scale, in evaluation it is; switching back and forth keeps both sound."""
    model, x = build_graph("batch_norm_first"), torch.rand(4, 2, 6, 6)
    bounded = BoundedModule(model, perturbations=[PerturbationL2Box(0.5)])
    before = bounds_of(bounded, x)
    bounded.train()
    clean = bounded(x).detach()
    lower, upper = bounds_of(bounded, x)
    assert (lower <= clean + 1e-5).all() and (upper >= clean - 1e-5).all() and (upper - lower).min() > 1e-3
    bounded.eval()
    after = bounds_of(bounded, x)
    assert largest_violation(model, x, PerturbationL2Box(0.5), after) <= 1e-5
    assert differs(before, after)  # the running statistics moved


def test_dropout_in_evaluation():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).eval()
    without = nn.Sequential(model[0], model[1], model[3], model[4])
    x = images()
    for method in METHODS[:3]:
        assert_same(bounds_of(BoundedModule(model, perturbations=SETS), x, method),
                    bounds_of(BoundedModule(without, perturbations=SETS), x, method))


# --- sets, regions, arguments ---------------------------------------------------------------------------------------

@every_method
@pytest.mark.parametrize("specification", [False, True], ids=["outputs", "margins"])
def test_union_is_the_worst_of_the_sets(method, specification):
    x = images()
    bounded = BoundedModule(network(), perturbations=SETS + [PerturbationL1Box(0.8)], bound_opts=OPTIONS)
    C = margin_matrix(torch.arange(BATCH) % 3, 3) if specification else None
    torch.manual_seed(0)
    per_set = bounded.compute_norm_bounds(x, C=C, method=method)
    torch.manual_seed(0)
    lower, upper = bounded.compute_bounds(x, C=C, method=method)
    assert len(per_set) == 3 and lower.shape == (BATCH, 2 if specification else 3)
    assert_same((lower, upper), (torch.stack([one for one, _ in per_set]).amin(0),
                                 torch.stack([one for _, one in per_set]).amax(0)))
    # No set alone decides everywhere, or the union would not be tested.
    assert any(not torch.allclose(lower, one) for one, _ in per_set)


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
    found = bounded.compute_region_bounds(regions, C=specifications, method=method)
    assert [tuple(lower.shape) for lower, _ in found] == [(1, 2), (3, 2), (4, 2)]
    assert_same(found[1], [end[1:] for end in found[2]])
    for (center, ball), C, bounds in zip(regions, specifications, found):
        assert_same(bounds, bounds_of(BoundedModule(bounded.model, perturbations=[ball]), center, method, C=C))


@every_method
@pytest.mark.parametrize("kept", [0, 1], ids=["lower", "upper"])
def test_one_side_only(method, kept):
    bounded, x = BoundedModule(network(), perturbations=SETS, bound_opts=OPTIONS), images()
    C = margin_matrix(torch.arange(BATCH) % 3, 3)
    both = bounds_of(bounded, x, method, C=C)
    flags = {"bound_upper": False} if kept == 0 else {"bound_lower": False}
    one = bounded.compute_bounds(x, C=C, method=method, **flags)
    tolerance = 0.05 if method == "CROWN-Optimized" else 1e-5  # other slopes are optimised
    assert torch.allclose(one[kept], both[kept], atol=tolerance)
    if method != "IBP":  # interval arithmetic gets both for the price of one
        assert one[1 - kept] is None or not torch.isfinite(one[1 - kept]).all()


LAYOUTS = {"channels_last": lambda x: x.to(memory_format=torch.channels_last),
           "permuted": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
           "sliced": lambda x: torch.cat([x, x], dim=3)[..., :4], "expanded": lambda x: x[:1].expand(BATCH, -1, -1, -1)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("graph", ["conv", "mlp"])
@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_memory_layout_of_the_inputs(graph, layout, method):
    features = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()] if graph == "conv" else []
    model = nn.Sequential(*features, nn.Flatten(), nn.Linear(64 if features else 32, 6), nn.ReLU(), nn.Linear(6, 3))
    x = layout(images())
    assert not x.is_contiguous()
    expected = bounds_of(BoundedModule(model, perturbations=SETS), x.contiguous(), method)
    assert_same(bounds_of(BoundedModule(model, perturbations=SETS), x, method), expected)


def test_inputs_that_require_grad_are_left_alone():
    bounded, x = BoundedModule(network(), perturbations=SETS), images().requires_grad_()
    expected = bounds_of(bounded, images())
    assert_same(bounds_of(bounded, x), expected)
    assert x.requires_grad and x.grad is None


@pytest.mark.parametrize("method", METHODS[:3])
def test_a_model_without_parameters(method):
    model = nn.Sequential(Lambda(lambda x: x - 0.5), nn.ReLU(), nn.Flatten())
    x = images()
    lower, upper = bounds_of(BoundedModule(model, perturbations=[PerturbationLinf(0.1)]), x, method)
    assert lower.shape == (BATCH, 32)
    lo, hi = (model((x + step).clamp(0, 1)) for step in (-0.1, 0.1))
    assert (lower <= lo + 1e-6).all() and (upper >= hi - 1e-6).all()
    if method == "IBP":
        assert_same((lower, upper), (lo, hi))


METHOD_NAMES = {"ibp": "IBP", "CROWN-ibp": "CROWN-IBP", "IBP+backward": "CROWN-IBP", "Backward": "CROWN",
                "alpha-CROWN": "CROWN-Optimized"}


@pytest.mark.parametrize("name,method", METHOD_NAMES.items(), ids=METHOD_NAMES)
def test_names_of_methods(name, method):
    bounded, x = BoundedModule(network(), perturbations=SETS, bound_opts=OPTIONS), images()
    assert_same(bounds_of(bounded, x, name), bounds_of(bounded, x, method))


def test_sets_of_the_host_and_per_example_radii():
    x, eps = images(), torch.tensor([0., 0.1, 0.2, 0.3])
    sets = [host.PerturbationLpNorm(norm=math.inf, eps=0.05), PerturbationL2Box(eps, clip=None)]
    model = network()
    (_, _), (lower, upper) = BoundedModule(model, perturbations=sets).compute_norm_bounds(x, method="CROWN")
    width = (upper - lower).detach().mean(1)
    assert width[0] < 1e-4 and (width[1:] > width[:-1]).all()
    for index, radius in enumerate(eps.tolist()):
        alone = BoundedModule(model, perturbations=[PerturbationL2Box(radius, clip=None)])
        assert_same(bounds_of(alone, x[index:index + 1], "CROWN"), (lower[index:index + 1], upper[index:index + 1]))


def test_bounds_of_a_bounded_module_are_those_of_its_model():
    inner = BoundedModule(network(), perturbations=SETS[:1])
    outer = BoundedModule(inner, perturbations=SETS)
    assert outer.model is inner.model
    assert_same(bounds_of(outer, images()), bounds_of(BoundedModule(inner.model, perturbations=SETS), images()))


# --- the host -------------------------------------------------------------------------------------------------------

def host_module(model, x, **options):
    with host.tracing():
        return host.HostModule(model, x, bound_opts=dict(host.DEFAULT_OPTIONS, **options))


def hosts_perturbation(norm, eps):
    return host.PerturbationLpNorm(norm=norm, eps=eps)


SAFE = {"conv": lambda: network(), "conv_batch_norm": lambda: build_batch_norm(), "linear": lambda: nn.Sequential(
    nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))}
HOST_NORMS = {"linf": (math.inf, 0.05), "l2": (2, 0.3)}


def build_batch_norm():
    model = network(True)
    model[1].running_var.uniform_(0.5, 1.5)
    model[1].weight.data.uniform_(-1, 1)
    return model


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("norm,eps", HOST_NORMS.values(), ids=HOST_NORMS)
@pytest.mark.parametrize("name", SAFE)
def test_one_plain_ball_is_bounded_as_by_the_host(name, norm, eps, method):
    """Where the host is sound (a Linear or Conv comes first) both give the same numbers."""
    model, x = SAFE[name](), images()
    bounded = BoundedModule(model, perturbations=[PerturbationLpBox(norm, eps, clip=None)])
    ours = bounds_of(bounded, x, method)
    theirs = host_module(copy.deepcopy(model), x).compute_bounds(
        x=(host.BoundedTensor(x, hosts_perturbation(norm, eps)),), method=method)
    assert_same(ours, [end.detach() for end in theirs], 1e-4)


@pytest.mark.parametrize("method", METHODS[:3])
def test_clip_is_the_hosts_box_for_linf(method):
    model, x = network(), images()
    ours = bounds_of(BoundedModule(model, perturbations=[PerturbationLinf(0.2)]), x, method)
    box = host.PerturbationLpNorm(norm=math.inf, x_L=(x - 0.2).clamp(0, 1), x_U=(x + 0.2).clamp(0, 1))
    theirs = host_module(copy.deepcopy(model), x).compute_bounds(x=(host.BoundedTensor(x, box),), method=method)
    assert_same(ours, [end.detach() for end in theirs], 1e-4)


@pytest.mark.parametrize("perturbations", [None, SETS], ids=["without_sets", "with_sets"])
@pytest.mark.parametrize("norm,eps", HOST_NORMS.values(), ids=HOST_NORMS)
@pytest.mark.parametrize("method", METHODS[:3])
def test_the_hosts_own_call_gives_the_hosts_numbers(method, norm, eps, perturbations):
    model, x = network(), images()
    given = (host.BoundedTensor(x, hosts_perturbation(norm, eps)),)
    bounded = BoundedModule(model, perturbations=perturbations)
    if perturbations:
        bounded.compute_bounds(x, method=method)  # a union call before must not matter
    ours = bounded.compute_bounds(x=given, method=method)
    theirs = host_module(copy.deepcopy(model), x).compute_bounds(x=given, method=method)
    assert_same([end.detach() for end in ours], [end.detach() for end in theirs], 1e-4)
    if perturbations:
        again = bounds_of(bounded, x, method)
        assert_same(again, bounds_of(BoundedModule(model, perturbations=perturbations), x, method))


# Graphs on which the host's own bounds for finite p are too narrow.
UNSAFE = ["standardize", "relu_first", "sigmoid_first", "max_pool_first", "negate", "input_skip"]


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("norm,eps", [(2, 0.6), (1, 1.5)], ids=["l2", "l1"])
@pytest.mark.parametrize("graph", UNSAFE)
def test_the_hosts_own_call_is_sound_for_finite_p(graph, norm, eps, method):
    model, x = build_graph(graph), torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    given = host.BoundedTensor(x, hosts_perturbation(norm, eps))
    bounds = [end.detach() for end in BoundedModule(model).compute_bounds(x=(given,), method=method)]
    ball = PerturbationLpBox(norm, eps, clip=None)
    settings = AttackSettings(steps=20, step_size=0.3)
    assert largest_violation(model, x, ball, bounds, settings=settings) <= 2e-5
    assert (bounds[1] - bounds[0]).min() > 1e-3


@pytest.mark.parametrize("norm,eps", HOST_NORMS.values(), ids=HOST_NORMS)
def test_return_A_passes_through(norm, eps):
    """The host's dictionary of linear bounds, which give the returned bounds when written out."""
    model, x = network(), images()
    bounded = BoundedModule(model, x)
    output, inputs = bounded.output_name[0], bounded.input_name[0]
    lower, upper, A = bounded.compute_bounds(x=(host.BoundedTensor(x, hosts_perturbation(norm, eps)),), method="CROWN",
                                             return_A=True, needed_A_dict={output: [inputs]})
    found = A[output][inputs]
    lA, uA = (found[key].flatten(2) for key in ("lA", "uA"))
    dual = 1 if norm == math.inf else 2
    for A_end, bias, bound, sign in ((lA, "lbias", lower, -1), (uA, "ubias", upper, 1)):
        centre = A_end.matmul(x.flatten(1).unsqueeze(-1)).squeeze(-1) + found[bias]
        expected = centre + sign * eps * A_end.norm(dual, -1)
        assert torch.allclose(bound, expected, atol=1e-4)


@pytest.mark.parametrize("method", ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"])
def test_float64_reaches_the_tables_of_curved_activations(method):
    """The host tabulates relaxations of Tanh when it traces, in torch's default type."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    bounded = BoundedModule(model, perturbations=[PerturbationLinf(0.1), PerturbationL2Box(0.1)])
    lower, upper = bounded.compute_bounds(x, C=torch.eye(2, dtype=torch.float64).expand(2, -1, -1), method=method)
    assert lower.dtype == torch.float64 and torch.get_default_dtype() == torch.float32
    assert (lower <= model(x)).all() and (model(x) <= upper).all()


def test_a_method_that_failed_half_way_leaves_nothing_behind():
    """The older host cannot optimise slopes of pooling, and what it had set up broke plain CROWN afterwards."""
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=(1, 0), stride=(2, 1)), nn.BatchNorm2d(6), nn.LeakyReLU(0.1),
                          nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)).eval()
    x = torch.rand(3, 2, 7, 8)
    bounded = BoundedModule(model, perturbations=[PerturbationL2Box(0.3)], bound_opts={"conv_mode": "matrix"})
    crown, _ = bounded.compute_bounds(x, method="CROWN")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimised, upper = bounded.compute_bounds(x, method="CROWN-Optimized")
    assert largest_violation(model, x, bounded.perturbations[0], (optimised.detach(), upper.detach())) <= 2e-5
    again, _ = bounded.compute_bounds(x, method="CROWN")
    assert torch.allclose(crown, again, atol=1e-6)
