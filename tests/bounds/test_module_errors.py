"""Bad input to BoundedModule: the error's class, the argument it names and the remedy."""

import math
import re

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    host,
    margin_matrix,
)
from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.errors import (
    InvalidArgumentError,
    LirpaMultinormError,
    NaNBoundError,
    UnsupportedModelError,
)
from lirpa_multinorm.perturbations import Region

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.3)]
METHODS = ["IBP", "CROWN-IBP", "CROWN", "CROWN-Optimized"]
every_method = pytest.mark.parametrize("method", METHODS)
OPTIONS = {"optimize_bound_args": {"iteration": 2}}
BATCH = 2


def network():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 4),
        nn.ReLU(),
        nn.Linear(4, 3),
    ).eval()


X = torch.rand(BATCH, 1, 3, 3, generator=torch.Generator().manual_seed(0))
C = margin_matrix(torch.tensor([0, 1]), 3)
NAN = math.nan

# --- x and C --------------------------------------------------------------------------------------

BAD_X = {
    "list": ([[0.5]], "^x must be a tensor"),
    "none_in_tuple": ((None,), "^x must be a tensor"),
    "vector": (torch.rand(9), "^x must be a tensor .* batch dimension, found shape"),
    "empty": (torch.rand(0, 1, 3, 3), "^x is an empty batch"),
    "double": (
        X.double(),
        r"^x has dtype torch.float64, the model torch.float32; convert with x.to\(torch.float32\)",
    ),
    "integer": (X.long(), "^x has dtype torch.int64"),
    "half": (X.half(), "^x has dtype torch.float16"),
    "other_device": (X.to("meta"), r"^x is on meta, the model on cpu; move it with x.to\('cpu'\)"),
    "nan": (X * NAN, "^x contains NaN or infinite values"),
    "one_nan": (X.masked_fill(X.max() == X, NAN), "^x contains NaN"),
    "infinite": (X / 0, "^x contains NaN or infinite values"),
    "above_clip": (X + 2, r"^x lies outside clip.*clip=None"),
    "below_clip": (X - 0.9, r"^x lies outside clip"),
    "channels": (torch.rand(BATCH, 2, 3, 3), "^x"),
    "size": (torch.rand(BATCH, 1, 5, 5), "^x"),
    "flat": (torch.rand(BATCH, 9), "^x"),
}


@pytest.mark.parametrize("traced", [False, True], ids=["untraced", "traced"])
@pytest.mark.parametrize("x,message", BAD_X.values(), ids=BAD_X)
def test_bad_x(x, message, traced):
    bounded = BoundedModule(network(), perturbations=SETS)
    if traced:
        bounded.compute_bounds(X, method="IBP")
    with pytest.raises(InvalidArgumentError, match=message):
        bounded.compute_bounds(x, method="IBP")
    # The module still works afterwards.
    assert torch.isfinite(bounded.compute_bounds(X, method="IBP")[0]).all()


BAD_C = {
    "list": (C.tolist(), "^C"),
    "matrix": (C[0], "^C must be a tensor"),
    "batch": (C[:1], "^C must be a tensor .* B = 2, found shape"),
    "outputs": (torch.rand(BATCH, 2, 5), "^C has K = 5; the model has 3 outputs"),
    "double": (C.double(), r"^C is torch.float64 on cpu, x is torch.float32 on cpu; use C.to\(x\)"),
    "integer": (C.long(), "^C is torch.int64"),
    "other_device": (C.to("meta"), "^C is torch.float32 on meta"),
    "nan": (C * NAN, "^C contains NaN"),
    "count": ([C, C, C], "^C: 3 specifications for 2 regions"),
    "list_of_numbers": ([1, 2], "^C must be a tensor .* found int"),
}


@every_method
@pytest.mark.parametrize("specification,message", BAD_C.values(), ids=BAD_C)
def test_bad_C(specification, message, method):
    bounded = BoundedModule(network(), perturbations=SETS, bound_opts=OPTIONS)
    with pytest.raises(InvalidArgumentError, match=message):
        bounded.compute_bounds(X, C=specification, method=method)


# --- other arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "perturbations,message",
    [
        ([], "^perturbations is empty; give at least one"),
        ([0.1], "^perturbations: 0.1 is not supported; use Perturb"),
        (0.1, "^perturbations=0.1"),
        ([host.PerturbationLpNorm(norm=3, eps=0.1)], "^norm=3"),
    ],
    ids=["empty", "number_inside", "number", "norm"],
)
def test_bad_perturbations(perturbations, message):
    with pytest.raises(InvalidArgumentError, match=message):
        BoundedModule(network(), perturbations=perturbations)


@pytest.mark.parametrize("call", ["compute_norm_bounds", "compute_bounds"])
def test_a_plain_tensor_without_sets(call):
    bounded = BoundedModule(network())
    with pytest.raises(
        InvalidArgumentError,
        match="^perturbations: the module has none; give them to the constructor",
    ):
        getattr(bounded, call)(X, method="IBP")


def test_radii_of_another_batch():
    bounded = BoundedModule(network(), perturbations=[PerturbationLinf([0.1, 0.2, 0.3])])
    with pytest.raises(InvalidArgumentError, match="^eps has 3 values for a batch of 2"):
        bounded.compute_bounds(X, method="IBP")


@pytest.mark.parametrize("method", ["ibpp", "", None, 3, "forward", "CROWN_IBP"], ids=str)
def test_unknown_method(method):
    with pytest.raises(
        InvalidArgumentError, match="^method=.* is unknown;.* use IBP, Lipschitz, CROWN-IBP, CROWN"
    ):
        BoundedModule(network(), perturbations=SETS).compute_bounds(X, method=method)


@pytest.mark.parametrize(
    "options",
    [{"return_A": True}, {"intermediate_layer_bounds": {}}, {"bound_uper": False}],
    ids=lambda options: next(iter(options)),
)
def test_options_the_union_cannot_take(options):
    with pytest.raises(
        InvalidArgumentError, match=f"^{next(iter(options))}: not supported.*BoundedTensor"
    ):
        BoundedModule(network(), perturbations=SETS).compute_bounds(X, method="IBP", **options)


def test_no_regions():
    with pytest.raises(InvalidArgumentError, match="^regions is empty"):
        BoundedModule(network()).compute_region_bounds([], method="IBP")


BAD_REGIONS = {
    "nan": ([Region(X, SETS[0]), Region(X * NAN, SETS[1])], "contains NaN"),
    "outside": ([Region(X, SETS[0]), Region(X + 3, SETS[1])], "outside clip"),
    "shape": ([Region(X, SETS[0]), Region(torch.rand(1, 1, 4, 4), SETS[1])], "^x"),
    "no_batch": ([Region(X[0, 0, 0], SETS[0])], "^x must be a tensor"),
}


@pytest.mark.parametrize("regions,message", BAD_REGIONS.values(), ids=BAD_REGIONS)
def test_bad_regions(regions, message):
    with pytest.raises(InvalidArgumentError, match=message):
        BoundedModule(network()).compute_region_bounds(regions, method="IBP")


@pytest.mark.parametrize("model", [lambda x: x, None, nn.Linear], ids=["function", "none", "class"])
def test_not_a_model(model):
    with pytest.raises(InvalidArgumentError, match="^model must be a torch.nn.Module"):
        BoundedModule(model, perturbations=SETS)


@pytest.mark.parametrize(
    "options", [{"bound_opts": SETS}, {"custom_ops": "relu"}], ids=["sets in third place", "text"]
)
def test_options_of_the_host_are_dicts(options):
    with pytest.raises(
        InvalidArgumentError,
        match=f"^{next(iter(options))}=.* must be a dict or None; .*perturbations=",
    ):
        BoundedModule(network(), X, **options)


# --- models ---------------------------------------------------------------------------------------

OUTPUTS = {
    "tuple": lambda x: (x, x),
    "list": lambda x: [x],
    "dict": lambda x: {"logits": x},
    "none": lambda x: None,
}


@pytest.mark.parametrize("function", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_that_are_no_tensor(function):
    bounded = BoundedModule(nn.Sequential(network(), Lambda(function)), perturbations=SETS)
    with pytest.raises(
        UnsupportedModelError, match="^model returns .*; wrap it so that it returns one tensor"
    ):
        bounded.compute_bounds(X, method="IBP")


def test_a_model_that_raises():
    def broken(x):
        raise RuntimeError("out of luck")

    bounded = BoundedModule(nn.Sequential(Lambda(broken), network()), perturbations=SETS)
    with pytest.raises(InvalidArgumentError, match="^x: the model cannot be applied.*out of luck"):
        bounded.compute_bounds(X, method="IBP")


class Strange(torch.autograd.Function):
    """An operator that no host knows."""

    @staticmethod
    def symbolic(graph, x):
        return graph.op("strange::Operator", x)

    @staticmethod
    def forward(ctx, x):
        return x.clone()


UNSUPPORTED = {
    "erfinv": (lambda x: torch.erfinv(x / 10), "(?i)erfinv"),
    "custom": (Strange.apply, "strange::Operator"),
    "fft": (lambda x: torch.fft.fft(x).real, "(?i)fft|real|complex"),
}


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
@pytest.mark.parametrize("function,name", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_operators_are_named(function, name, method, capsys):
    bounded = BoundedModule(nn.Sequential(network(), Lambda(function)), perturbations=SETS)
    with pytest.raises(UnsupportedModelError, match="^model: .*auto_LiRPA.*custom_ops") as caught:
        bounded.compute_bounds(X, method=method)
    text = str(caught.value)
    assert re.search(name, text), text
    assert " at /" in text, "the place in the graph"
    assert capsys.readouterr().out == ""


def test_a_failed_trace_leaves_the_model_as_it_was():
    model = nn.Sequential(network(), Lambda(Strange.apply)).train()
    model[0][0].weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    bounded = BoundedModule(model, perturbations=SETS)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError):
            bounded.compute_bounds(X, method="IBP")
    assert all(module.training for module in model.modules()) and bounded.training
    assert [parameter.requires_grad for parameter in model.parameters()] == before
    assert list(bounded.state_dict()) == list(model.state_dict())


# --- NaN ------------------------------------------------------------------------------------------

PLACES = {"first_weight": 0, "first_bias": 1, "middle_weight": 2, "last_weight": 4, "last_bias": 5}


def damaged(place, value=NAN):
    model = network()
    with torch.no_grad():
        list(model.parameters())[PLACES[place]].flatten()[0] = value
    return model


@every_method
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("specification", [None, C], ids=["outputs", "margins"])
@pytest.mark.parametrize(
    "sets",
    [SETS, SETS[:1], SETS[1:], [PerturbationLpBox(1, 0.5, clip=None)]],
    ids=["union", "linf", "l2", "l1_ball"],
)
def test_nan_weights_never_give_bounds(sets, specification, place, method):
    bounded = BoundedModule(damaged(place), perturbations=sets, bound_opts=OPTIONS)
    with pytest.raises(NaNBoundError, match="NaN.*check the model's weights"):
        bounded.compute_bounds(X, C=specification, method=method)


@every_method
@pytest.mark.parametrize("place", PLACES)
def test_infinite_weights_never_give_nan(place, method):
    """An error of the package, or bounds that say nothing wrong.

    No NaN, and lower not above upper.
    """
    bounded = BoundedModule(damaged(place, math.inf), perturbations=SETS, bound_opts=OPTIONS)
    try:
        lower, upper = bounded.compute_bounds(X, method=method)
    except LirpaMultinormError:
        return
    assert not torch.isnan(lower).any() and not torch.isnan(upper).any() and (lower <= upper).all()


def test_the_module_recovers_when_the_weights_do():
    model = damaged("middle_weight")
    bounded = BoundedModule(model, perturbations=SETS)
    with pytest.raises(NaNBoundError):
        bounded.compute_bounds(X, method="CROWN")
    with torch.no_grad():
        model[3].weight.nan_to_num_(0.0)
    lower, upper = bounded.compute_bounds(X, method="CROWN")
    assert torch.isfinite(lower).all() and (lower <= upper).all()


# --- the host's own call --------------------------------------------------------------------------

HOSTS_BAD = {
    "negative_eps": (host.PerturbationLpNorm(norm=2, eps=-1.0), X, "^eps"),
    "norm": (host.PerturbationLpNorm(norm=3, eps=0.1), X, "^norm=3"),
    "nan": (host.PerturbationLpNorm(norm=2, eps=0.1), X * NAN, "^x contains NaN"),
    "our_set_outside_clip": (PerturbationLinf(0.1), X + 3, "^x lies outside clip"),
}


@pytest.mark.parametrize("perturbation,x,message", HOSTS_BAD.values(), ids=HOSTS_BAD)
def test_bad_input_to_the_hosts_call(perturbation, x, message):
    with pytest.raises(InvalidArgumentError, match=message):
        BoundedModule(network()).compute_bounds(
            x=(host.BoundedTensor(x, perturbation),), method="IBP"
        )


def test_forward_mode_of_a_curved_set_is_refused():
    given = host.BoundedTensor(X, host.PerturbationLpNorm(norm=2, eps=0.1))
    with pytest.raises(InvalidArgumentError, match="^method.*forward-mode"):
        BoundedModule(network()).compute_bounds(x=(given,), method="forward")
