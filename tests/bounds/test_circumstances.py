"""What surrounds a call changes neither its bounds nor the process."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    Region,
    certify,
    host,
    pgd,
)
from lirpa_multinorm.errors import InvalidArgumentError, UnsupportedModelError
from lirpa_multinorm.verifier.branching.branch_and_bound import BranchSettings
from tests.bounds.plain_bounds import METHODS, SETS, bound, inputs, module, network, plain_bounds
from tests.bounds.small_network import OPTIONS
from tests.checks import assert_same
from tests.networks import Single


def in_inference_mode(model, x, method):
    with torch.inference_mode():
        return bound(model, x.clone(), method)


def in_autocast(model, x, method):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return bound(model, x, method)


def without_gradients(model, x, method):
    with torch.no_grad():
        return bound(model, x, method)


def with_another_default_type(model, x, method):
    torch.set_default_dtype(torch.float64)
    try:
        bounds = bound(model, x, method)
        assert torch.get_default_dtype() == torch.float64
        return bounds
    finally:
        torch.set_default_dtype(torch.float32)


def pickled(model, x, method):
    bounded = module(model)
    bounded(x)
    return pickle.loads(pickle.dumps(bounded)).compute_bounds(x, method=method)


def copied(model, x, method):
    bounded = module(model)
    bounded(x)
    return copy.deepcopy(bounded).compute_bounds(x, method=method)


def frozen(model, x, method):
    return bound(model.requires_grad_(False), x, method)


def replaced(model, x, method):
    bounded = module(model)
    weight = model[4].weight
    model[4].weight = nn.Parameter(2 * weight)
    bounded(x)
    model[4].weight = nn.Parameter(weight.detach().clone())
    return bounded.compute_bounds(x, method=method)


def edited_in_place(model, x, method):
    bounded = module(model)
    weight = model[4].weight.detach().clone()
    model[4].weight.data.mul_(3)
    bounded.compute_bounds(x, method=method)
    model[4].weight.data.copy_(weight)
    return bounded.compute_bounds(x, method=method)


CIRCUMSTANCES = {
    "inference mode": in_inference_mode,
    "autocast": in_autocast,
    "no_grad": without_gradients,
    "default type": with_another_default_type,
    "pickle": pickled,
    "deepcopy": copied,
    "frozen": frozen,
    "parameter replaced": replaced,
    "parameter edited": edited_in_place,
    "channels last": lambda model, x, method: bound(
        model, x.to(memory_format=torch.channels_last), method
    ),
    "not contiguous": lambda model, x, method: bound(
        model, x.transpose(2, 3).contiguous().transpose(2, 3), method
    ),
    "DataParallel": lambda model, x, method: bound(nn.DataParallel(model), x, method),
    "compiled": lambda model, x, method: bound(torch.compile(model, backend="eager"), x, method),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_bounds_are_those_of_a_plain_call(name, method):
    bounds = CIRCUMSTANCES[name](network(), inputs(), method)
    assert all(end.dtype == torch.float32 for end in bounds)
    assert_same(bounds, plain_bounds(method))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(UnsupportedModelError, match=r"model\.float\(\)"):
        bound(network(dtype), inputs(dtype), "IBP")


def test_weights_of_inference_mode_are_refused():
    with torch.inference_mode():
        model = network()
    with pytest.raises(UnsupportedModelError, match="inference_mode"):
        bound(model, inputs(), "IBP")


def test_certify_and_pgd_in_inference_mode():
    model, x = network(), inputs()
    y = model(x).argmax(1)
    settings = CertifySettings(["IBP", "CROWN", "SDP-CROWN", "BaB"], time_limit=5)
    expected = certify(model, x, y, SETS, settings)
    points = pgd(model, x, y, SETS, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result = certify(model, x.clone(), y.clone(), SETS, settings)
        attacked = pgd(
            model, x.clone(), y.clone(), SETS, generator=torch.Generator().manual_seed(0)
        )
    assert result.status == expected.status and not result.errors
    assert_same(attacked, points, 0, 0)


def test_branch_and_bound_in_inference_mode():
    model, x, C = network(), inputs()[:1], torch.tensor([[1.0, -1.0, 0.0]])
    few = BranchSettings(max_splits=4)
    expected = module(model).branch_and_bound(Region(x, SETS[1]), C, settings=few)
    with torch.inference_mode():
        region = Region(x.clone(), SETS[1])
        lower = module(model).branch_and_bound(region, C.clone(), settings=few)
    torch.testing.assert_close(lower, expected)


def test_a_tied_layer_is_bounded_as_what_it_is():
    layer = nn.Linear(3, 3)
    model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.rand(2, 3)
    bounds = bound(model, x, "CROWN")
    expected = bound(nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer)), x, "CROWN")
    assert_same(bounds, expected, atol=1e-6)


def test_a_perturbed_input_keeps_its_set_in_inference_mode():
    model, x = network(), inputs()
    with torch.inference_mode():
        perturbed = host.BoundedTensor(x.clone(), host.PerturbationLpNorm(norm=math.inf, eps=0.02))
        lower, upper = BoundedModule(model, torch.empty_like(x)).compute_bounds(
            (perturbed,), method="IBP"
        )
    assert float((upper - lower).min()) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_an_input_made_in_inference_mode_is_bounded_outside_of_it(method):
    with torch.inference_mode():
        x = inputs().clone()
    assert_same(bound(network(), x, method), plain_bounds(method), 1e-5, 1.3e-6)


@pytest.mark.filterwarnings("ignore:model:UserWarning")
@pytest.mark.parametrize("method", ["IBP", "CROWN"])
def test_bounds_under_a_flop_counter(method):
    """The old host fails in any TorchDispatchMode; our engine does not."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        result = bound(network(), inputs(), method)
    assert_same(result, plain_bounds(method), atol=0.2)


@pytest.mark.parametrize(
    "method", ["IBP", "CROWN-IBP", "CROWN", "Sparse-CROWN", "SDP-CROWN", "Lipschitz"]
)
@pytest.mark.parametrize("with_specification", [False, True])
def test_several_sets_of_a_model_of_single_inputs(method, with_specification):
    torch.manual_seed(0)
    model = Single(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))).eval()
    sets, x = [PerturbationLinf(0.05), PerturbationL2Box(0.1)], torch.rand(1, 1, 4, 4)
    C = torch.tensor([[[1.0, -1.0, 0.0]]]) if with_specification else None
    both = BoundedModule(model, perturbations=sets, bound_opts=OPTIONS)
    both = both.compute_norm_bounds(x, C=C, method=method)
    for ball, bounds in zip(sets, both):
        alone = BoundedModule(model, perturbations=[ball], bound_opts=OPTIONS)
        alone = alone.compute_bounds(x, C=C, method=method)
        # An optimiser's path depends on its batch.
        assert_same(bounds, alone, atol=0.05 if method == "SDP-CROWN" else 1e-5)


def test_inputs_without_a_common_batch_are_named():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    x, y = host.BoundedTensor(torch.rand(2, 4), PerturbationLinf(0.1)), torch.rand(4)
    with pytest.raises(InvalidArgumentError, match=r"shapes \(2, 4\), \(4,\) are no batch"):
        BoundedModule(Two()).compute_bounds((x, y), method="IBP")
