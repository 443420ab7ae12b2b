"""Networks: shapes, layers as published, normalisation, clear errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.audit import largest_violation
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import MODELS, Normalize, build_model, cnn7, cnn_small

OPTIONS = {
    "mlp": {},
    "linf_dist_mlp": {"hidden": [5]},
    "masked_cnn": {"width": 4, "patch_side": 3, "masks_per_side": 2},
}


def kinds(model):
    return [type(layer).__name__ for layer in model]


@pytest.mark.parametrize("in_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 14)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_images_to_logits_and_trains(name, in_shape):
    options = OPTIONS.get(name, {"width": 4})
    if name == "liresnet" and in_shape[1] != in_shape[2]:
        pytest.skip("takes square images")  # refused, as BAD tells
    model = build_model(name, in_shape, 7, **options)
    logits = model(torch.rand(3, *in_shape))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    # The scalar of a distance network belongs to its loss.
    assert {key[-5:] for key, p in model.named_parameters() if p.grad is None} <= {"scale"}
    assert not any(isinstance(layer, nn.Sequential) for layer in model)


def test_cnn7_is_sabrs():
    model = cnn7((3, 32, 32), 10)
    convs = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [64, 64, 128, 128, 128]
    assert [c.stride[0] for c in convs] == [1, 1, 2, 1, 1]
    assert {(c.kernel_size, c.padding) for c in convs} == {((3, 3), (1, 1))}
    assert kinds(model) == ["Conv2d", "BatchNorm2d", "ReLU"] * 5 + [
        "Flatten",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]
    assert (model[16].in_features, model[16].out_features) == (16 * 16 * 128, 512)
    assert cnn7((3, 56, 56), 200)[16].in_features == 100352


def test_cnn_small_is_cnn_a():
    # The keys and shapes of the published CNN-A checkpoints.
    shapes = {
        key: tuple(value.shape) for key, value in cnn_small((1, 28, 28), 10).state_dict().items()
    }
    assert shapes == {
        "0.weight": (16, 1, 4, 4),
        "0.bias": (16,),
        "2.weight": (32, 16, 4, 4),
        "2.bias": (32,),
        "5.weight": (100, 1568),
        "5.bias": (100,),
        "7.weight": (10, 100),
        "7.bias": (10,),
    }


def test_depth_counts_layers_with_weights():
    for name, depth in (("cnn3", 3), ("cnn5", 5), ("cnn7", 7)):
        model = build_model(name, (1, 8, 8), 10, width=2)
        assert sum(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in model) == depth


def test_options_reach_the_factory():
    assert build_model("cnn7", (1, 8, 8), 10, width=np.int64(3), hidden=11)[17].num_features == 11
    linear = [
        layer
        for layer in build_model("mlp", (1, 8, 8), 10, hidden=[5, 6, 7])
        if isinstance(layer, nn.Linear)
    ]
    assert [layer.out_features for layer in linear] == [5, 6, 7, 10]


def test_normalize_against_numpy():
    x = torch.rand(2, 3, 4, 5)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 2.0)
    want = (x.numpy() - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    layer = Normalize(mean, std)
    assert np.allclose(layer(x).numpy(), want, atol=1e-6)
    assert not list(layer.parameters())
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == {
        "mean": (3, 1, 1),
        "std": (3, 1, 1),
    }
    assert layer.double().mean.dtype == torch.float64


def test_normalisation_comes_first_and_only_if_it_does_something():
    assert kinds(build_model("mlp", (1, 2, 2), 2, (0.0,), (1.0,)))[0] == "Flatten"
    assert kinds(build_model("mlp", (1, 2, 2), 2))[0] == "Flatten"
    for mean, std in (((0.5,), (1.0,)), ((0.0,), (0.5,)), ((0.5,), None), (None, 0.5)):
        model = build_model("mlp", (1, 2, 2), 2, mean, std)
        assert kinds(model)[:2] == ["Normalize", "Flatten"]
    torch.manual_seed(0)
    plain = build_model("mlp", (1, 2, 2), 2)
    torch.manual_seed(0)
    normalised = build_model("mlp", (1, 2, 2), 2, (0.25,), (0.5,))
    x = torch.rand(3, 1, 2, 2)
    assert torch.allclose(normalised(x), plain((x - 0.25) / 0.5), atol=1e-6)


def test_saturation_comes_first_and_hides_what_happens_to_dark_and_bright_pixels():
    model = build_model("cnn_small", (1, 8, 8), 10, 0.5, 0.25, saturation=(0.25, 0.75), width=2)
    assert kinds(model)[:3] == ["Saturation", "Normalize", "Conv2d"]
    x = torch.tensor([0.0, 0.2, 0.25, 0.4, 0.5, 0.75, 0.8, 1.0])
    assert torch.allclose(model[0](x), ((x - 0.25) / 0.5).clamp(0, 1))
    image = (torch.rand(4, 1, 8, 8) > 0.5).float()
    moved = (image + 0.25 * torch.randn(4, 1, 8, 8).clamp(-1, 1)).clamp(0, 1)
    assert torch.equal(model(image), model(moved))


@pytest.mark.parametrize(
    "perturbation",
    [PerturbationLinf(0.25), PerturbationL2Box(0.75), PerturbationL1Box(1.0)],
    ids=["l_inf", "l_2", "l_1"],
)
@pytest.mark.parametrize(
    "method", ["IBP", "Lipschitz", "CROWN-IBP", "CROWN", "Sparse-CROWN", "SDP-CROWN"]
)
def test_saturated_networks_are_bounded(method, perturbation):
    torch.manual_seed(0)
    model = build_model("cnn_small", (1, 8, 8), 10, saturation=(0.25, 0.75), width=2).eval()
    x = torch.cat([torch.rand(2, 1, 8, 8), (torch.rand(2, 1, 8, 8) > 0.5).float()])
    few_steps = {"optimize_bound_args": {"iteration": 10}}
    bounded = BoundedModule(model, x, few_steps, perturbations=[perturbation])
    lower, upper = bounded.compute_bounds(x, method=method)
    assert (
        largest_violation(model, x, perturbation, (lower, upper), settings=AttackSettings(steps=25))
        <= 1e-5
    )
    if (
        perturbation.norm == math.inf and method != "Lipschitz"
    ):  # black and white pixels are as if they were fixed
        assert torch.allclose(lower[2:], model(x[2:]), atol=1e-5) and torch.allclose(
            upper[2:], model(x[2:]), atol=1e-5
        )


BAD = {
    "near name": (
        ("cnn_smal", (1, 8, 8), 10),
        {},
        "name: .*'cnn_smal'.*Did you mean 'cnn_small'.*mlp",
    ),
    "unknown name": (("vit", (1, 8, 8), 10), {}, "name: no model 'vit'. Known: cnn_small, cnn3"),
    "flat shape": (("mlp", (64,), 10), {}, r"in_shape: \(64,\).*\(C, H, W\)"),
    "zero size": (("mlp", (1, 0, 8), 10), {}, "in_shape: "),
    "one class": (("mlp", (1, 8, 8), 1), {}, "num_classes: 1"),
    "too small": (("cnn_small", (1, 3, 8), 10), {}, "in_shape: images of 3x8 vanish.*at least 4x4"),
    "too small 2b": (
        ("resnet2b", (1, 8, 3), 10),
        {},
        "in_shape: images of 8x3 vanish.*at least 4x4",
    ),
    "too small 4b": (
        ("resnet4b", (1, 7, 8), 10),
        {},
        "in_shape: images of 7x8 vanish.*at least 8x8",
    ),
    "not square": (("liresnet", (3, 9, 14), 10), {}, "in_shape: images of 9x14 are not square"),
    "too small for stem and neck": (
        ("liresnet", (1, 6, 6), 10),
        {},
        "in_shape: images of 6x6 vanish.*needs 7 pixels a side at least",
    ),
    "odd width": (("liresnet", (1, 8, 8), 10), {"width": 3}, "channels=3: MinMax.*even number"),
    "option": (("cnn_small", (1, 8, 8), 10), {"depth": 3}, "depth: .*no such option.*width"),
    "width": (("cnn7", (1, 8, 8), 10), {"width": 0}, "width: 0. Pass one positive"),
    "width list": (("cnn7", (1, 8, 8), 10), {"width": [4]}, r"width: \[4\]. Pass one"),
    "hidden number": (("mlp", (1, 8, 8), 10), {"hidden": 100}, "hidden: 100. Pass a list"),
    "mean length": (("mlp", (3, 8, 8), 10), {"mean": (0.5,)}, "mean: 1 numbers for 3 channels"),
    "std zero": (("mlp", (1, 8, 8), 10), {"std": (0.0,)}, r"std: \[0.0\].*positive"),
    "one level": (
        ("mlp", (1, 8, 8), 10),
        {"saturation": (0.1,)},
        r"saturation: \(0.1,\). Pass two numbers",
    ),
    "a level": (("mlp", (1, 8, 8), 10), {"saturation": 0.1}, "saturation: 0.1. Pass two numbers"),
    "levels upside down": (
        ("mlp", (1, 8, 8), 10),
        {"saturation": (0.9, 0.1)},
        "saturation: .*low < high",
    ),
    "level outside": (
        ("mlp", (1, 8, 8), 10),
        {"saturation": (-0.1, 0.9)},
        "saturation: .*0 <= low",
    ),
    "level nan": (("mlp", (1, 8, 8), 10), {"saturation": (float("nan"), 0.9)}, "saturation: "),
    "level text": (("mlp", (1, 8, 8), 10), {"saturation": ("0", "1")}, "saturation: "),
    "mean nan": (("mlp", (1, 8, 8), 10), {"mean": (float("nan"),)}, r"mean: \[nan\]"),
}


@pytest.mark.parametrize("arguments, options, message", BAD.values(), ids=BAD)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        build_model(*arguments, **options)


def test_normalize_alone_checks_lengths():
    with pytest.raises(InvalidArgumentError, match="std: 2 numbers for 1 in mean"):
        Normalize([0.0], [1.0, 1.0])
