"""Where TAPS cuts networks, and the networks that it cannot cut."""

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, build_loss
from lirpa_multinorm.errors import InvalidArgumentError, UnsupportedModelError
from lirpa_multinorm.models import MODELS
from lirpa_multinorm.perturbations import Region
from tests.losses.cases import SETS, images
from tests.networks import conv, dense, in_float64, mlp, skips

LINF = SETS[0]


@pytest.mark.parametrize(
    "name, places",
    [
        ("cnn_small", {1: (32, 3, 3), 2: (16, 6, 6)}),
        ("mlp", {1: (100,)}),
        ("resnet2b", {1: (16, 3, 3), 2: (16, 3, 3), 3: (16, 3, 3), 5: (8, 6, 6)}),
    ],
)
def test_the_cut_stands_behind_an_activation_or_a_block(name, places):
    model, x = MODELS[name]((1, 12, 12), 10).double(), torch.rand(3, 1, 12, 12, dtype=torch.float64)
    bounded = BoundedModule(model).eval()
    bounded.compute_region_bounds([Region(x, PerturbationLinf(0.05))])
    points = []
    for layers, shape in places.items():
        classifier = bounded.latent_classifier(layers)
        lower, upper = classifier.box(slice(1, 3))
        assert lower.shape == upper.shape == (2, *shape) and bool((lower <= upper).all())
        points.append((lower, upper))
    bounded.compute_region_bounds([Region(x, PerturbationLinf(0.0))])
    for (lower, upper), layers in zip(points, places):
        classifier = bounded.latent_classifier(layers)
        inside, _ = classifier.box(slice(1, 3))
        assert bool((lower <= inside + 1e-12).all()) and bool((inside <= upper + 1e-12).all())
        assert torch.allclose(classifier.outputs(inside), model(x[1:]), rtol=1e-10, atol=1e-10)


def test_a_block_that_cannot_be_cut_goes_to_the_classifier_whole():
    model, (x, _) = in_float64(skips), images(3)
    bounded = BoundedModule(model).eval()
    bounded.compute_region_bounds([Region(x, LINF)])
    shapes = [bounded.latent_classifier(layers).box()[0].shape[1:] for layers in (1, 2, 3)]
    assert shapes == [
        (3, 4, 4),
        (3, 4, 4),
        (3, 4, 4),
    ]  # behind the last ReLU but one, the sum, the first ReLU
    inside = [bounded.latent_classifier(layers).box()[0] for layers in (1, 2, 3)]
    assert (
        bool((inside[0] >= 0).all())
        and bool((inside[1] < 0).any())
        and bool((inside[2] >= 0).all())
    )


@pytest.mark.parametrize(
    "make, layers, words",
    [
        (mlp, 2, "taps of the l_inf.*layers=2: the network has no place.*use at most 1"),
        (lambda: dense(32, 5, 3), 1, "layers=1: .*use bounding='IBP'"),
    ],
)
def test_more_layers_than_there_are(make, layers, words):
    model, (x, y) = in_float64(make), images()
    with pytest.raises(InvalidArgumentError, match=words):
        build_loss("staps", [LINF], taps_inf={"layers": layers})(BoundedModule(model), x, y)


@pytest.mark.filterwarnings("ignore:model. its graph holds", "ignore:Using len to get")
def test_a_graph_that_holds_the_number_of_inputs_is_refused():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Linear(32, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
            )

        def forward(self, x):
            return self.layers(x.reshape(len(x), 32))

    model, (x, y) = Sized().double(), images()
    with pytest.raises(UnsupportedModelError, match=r"number of inputs.*use -1 or flatten\(1\)"):
        build_loss("taps", [LINF])(BoundedModule(model), x, y)


def test_an_operator_the_host_lacks_is_named():
    class Erf(nn.Module):
        def forward(self, x):
            return torch.special.erf(x)

    model, (x, y) = (
        nn.Sequential(
            nn.Flatten(), nn.Linear(32, 4), Erf(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)
        ).double(),
        images(),
    )
    with pytest.raises(UnsupportedModelError, match="(?i)erf"):
        build_loss("taps", [LINF])(BoundedModule(model).train(), x, y)


def test_no_interval_pass_before():
    bounded, (x, _) = BoundedModule(in_float64(conv)), images(2)
    with pytest.raises(InvalidArgumentError, match="call compute_region_bounds by IBP first"):
        bounded.latent_classifier(1)
    bounded.compute_region_bounds([Region(x, LINF)], method="CROWN")
    with pytest.raises(InvalidArgumentError, match="call compute_region_bounds by IBP first"):
        bounded.latent_classifier(1)
