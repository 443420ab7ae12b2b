"""Bad input to BoundedModule: the error's class, the argument it names and the remedy."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, host
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region
from tests.bounds.error_cases import BATCH, NAN, OPTIONS, SETS, C, X, every_method, network

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
