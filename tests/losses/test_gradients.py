"""Every loss gives every weight a gradient that can be used."""

import pytest
import torch

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    build_loss,
)
from lirpa_multinorm.losses import LOSSES, shi_regularizer
from tests.networks import batch_norm_conv, dense

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.2), PerturbationL1Box(0.5)]
VARIANTS = {
    "cure_both": ("cure", {"target": "both"}),
    "cure_detached": ("cure", {"detach": True}),
    "random_overlapping": ("random", {"blocks": "overlapping"}),
    "max_released": ("max", {"region_2": "released"}),
    "max_ball": ("max", {"region_2": "ball", "ratio_2": 0.5, "region_1": "ball", "ratio_1": 0.5}),
    "joint_shrunk": ("joint", {"shrink_inf": 0.4, "shrink_2": 1.0}),
    "ratio_start": ("joint", {"ratio_start_inf": 1.0, "ratio_start_2": 0.5}),
    **{name: (name, {}) for name in LOSSES if name not in ("natural", "linf_dist")},
}
variants = pytest.mark.parametrize("name, options", VARIANTS.values(), ids=VARIANTS)


def mlp():
    return dense(32, 16, 8, 3)


def run(model, name, options, scale=1.0):
    """The loss and Shi's regularisers, after a clean pass in training mode."""
    x, bounded = torch.rand(8, 2, 4, 4), BoundedModule(model).train()
    with torch.no_grad():
        y = (bounded(x).argmax(1) + torch.arange(8) % 2) % 3
    bounded(x)
    return build_loss(name, SETS, **options)(bounded, x, y, eps_scale=scale)


def assert_finite(model, value):
    value.backward()
    assert torch.isfinite(value)
    assert all(
        torch.isfinite(parameter.grad).all()
        for parameter in model.parameters()
        if parameter.grad is not None
    )


@variants
@pytest.mark.parametrize("make", [mlp, batch_norm_conv], ids=lambda make: make.__name__)
def test_every_weight_has_a_gradient(make, name, options):
    model = make()
    result = run(model, name, options)
    assert_finite(model, result.value)
    for parameter_name, parameter in model.named_parameters():
        cancelled = make is batch_norm_conv and parameter_name in (
            "0.bias",
            "4.bias",
        )  # BatchNorm removes a constant
        assert cancelled or parameter.grad.abs().max() > 1e-6, parameter_name


@variants
@pytest.mark.parametrize("scale", [0.0, 1e-6], ids=["zero", "tiny"])
def test_radius_zero_has_finite_gradients(name, options, scale):
    model = batch_norm_conv()
    result = run(model, name, options, scale)
    assert_finite(model, result.value + shi_regularizer(result.hidden))
    assert model[0].weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("name", ["max", "cure", "mtl_ibp", "cc_ibp", "exp_ibp"])
@pytest.mark.parametrize("factor", [1e2, 1e4], ids=["large", "huge"])
def test_losses_that_underflow_have_finite_gradients(name, factor):
    """Weights so large that some losses are 0 in float32 and others thousands."""
    model = mlp()
    with torch.no_grad():
        model[5].weight *= factor
    result = run(model, name, {}, scale=0.01)
    assert (
        min(loss.min() for loss in result.per_example) < 1e-6
        and max(loss.max() for loss in result.per_example) > 1
    )
    assert_finite(model, result.value)
