"""Bounds of patches: sound, never looser than place by place, and counted."""

import math
import time

import pytest
import torch
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationLinf, Region, margin_matrix
from lirpa_multinorm.bounds.patch_places import bounds_by_place
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError
from lirpa_multinorm.models import Normalize
from lirpa_multinorm.perturbations.patch import PerturbationPatch
from lirpa_multinorm.verifier.network_state import NetworkState
from lirpa_multinorm.verifier.patches.crown import RectangleCrown
from lirpa_multinorm.verifier.patches.differences import Differences
from lirpa_multinorm.verifier.patches.reach import Rectangle
from lirpa_multinorm.verifier.patches.search import PatchSettings
from tests.networks import Skip, dense, pixels, with_parameters

EVERY = PatchSettings(every_place=True)


def conv(channels=1):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def batch_norm_skip():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Skip(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 3),
    )


NETWORKS = {
    "mlp": (lambda: dense(100, 12, 8, 3), 1),
    "conv": (conv, 1),
    "linear": (lambda: dense(100, 3), 1),
    "batch norm and skip": (batch_norm_skip, 1),
    "normalised": (lambda: nn.Sequential(Normalize([0.3], [0.4]), *conv()), 1),
    "colours": (lambda: nn.Sequential(Normalize([0.3, 0.4, 0.5], [0.2, 0.3, 0.4]), *conv(3)), 3),
}


@torch.no_grad()
def problem(name, dtype=torch.float32, images=2):
    """A network, images of 10x10 pixels, their labels, and margins to bound."""
    make, channels = NETWORKS[name]
    torch.manual_seed(1)
    model, x = make().to(dtype), pixels(images, channels, 10, 10, dtype=dtype)
    model.train()(pixels(20, channels, 10, 10, seed=1, dtype=dtype))  # BatchNorm's statistics
    y = model.eval()(x).argmax(1)
    return model, x, y, margin_matrix(y, 3).to(dtype)


def searched(name, size, settings=EVERY, enough=0.0, dtype=torch.float32):
    model, x, y, C = problem(name, dtype)
    bounded, patch = BoundedModule(model), PerturbationPatch(*size)
    needed = torch.full(C.shape[:2], enough, dtype=dtype)
    return model, x, C, patch, bounded.bound_patches(x, patch, C, needed, settings=settings)


def lowest_by_attack(model, x, C, patch, steps=4):
    """The lowest margins (B, rows, columns, S) that random points and gradient steps reach."""
    rows, columns = patch.places(x)
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    mask = patch.masks(x, place).repeat(len(x), 1, 1, 1)
    clean, forms = x.repeat_interleave(len(place), 0), C.repeat_interleave(len(place), 0)
    generator = torch.Generator().manual_seed(0)
    lowest = clean.new_full(forms.shape[:2], math.inf)
    for start in range(2):
        fill = torch.rand(clean.shape, generator=generator).to(clean)
        fill = fill.round() if start % 2 else fill
        for _ in range(steps):
            point = torch.where(mask, fill, clean).requires_grad_()
            values = torch.matmul(forms, model(point).unsqueeze(2)).squeeze(2)
            (gradient,) = torch.autograd.grad(values[:, start % 2].sum(), point)
            lowest = torch.minimum(lowest, values.detach())
            fill = (fill - 0.3 * gradient.sign()).clamp(0, 1)
    return lowest.view(len(x), rows, columns, -1)


@pytest.mark.parametrize("name, size", [*((name, (3, 2)) for name in NETWORKS), ("conv", (5, 6))])
def test_no_attack_beats_the_bounds_of_any_place(name, size):
    model, x, C, patch, result = searched(name, size, enough=0.05)
    lowest = lowest_by_attack(model, x, C, patch)
    assert (result.places <= lowest + 1e-4).all()
    assert torch.equal(result.bounds, result.places.flatten(1, 2).amin(1))
    assert torch.equal(result.proved, (result.places > 0.05).all(3))
    assert result.places.isfinite().all() and (result.passes > 0.5).all()


def by_place(model, x, C, patch):
    return bounds_by_place(
        BoundedModule(model), x, patch, C, torch.zeros(C.shape[:2]).to(x), every_place=True
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_single_places_have_the_bounds_of_interval_arithmetic_place_by_place(name):
    model, x, _, C = problem(name, torch.float64)
    patch, state = PerturbationPatch(3, 2), NetworkState(model, x)
    expected = by_place(model, x, C, patch).places
    rows, columns = patch.places(x)
    places = [Rectangle(top, left, 3, 2) for top in range(rows) for left in range(columns)]
    with torch.no_grad():
        result, _ = Differences(state.network, state.reaches, x, C).bounds(
            places,
            torch.arange(len(places)).repeat(len(x)),
            torch.arange(len(x)).repeat_interleave(len(places)),
        )
    result = result.view(expected.shape)
    assert (result >= expected - 1e-9).all()
    if "skip" not in name:  # whose affine operators between ReLUs are no single matrix there
        torch.testing.assert_close(result, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["mlp", "colours", "batch norm and skip"])
def test_the_search_proves_every_place_that_place_by_place_proves(name):
    model, x, C, patch, result = searched(name, (1, 4), dtype=torch.float64)
    assert (result.proved | ~by_place(model, x, C, patch).proved).all()


def test_without_crown_the_same_places_are_proved():
    model, x, C, patch, result = searched(
        "conv", (2, 2), PatchSettings(crown=False, every_place=True), dtype=torch.float64
    )
    assert torch.equal(result.proved, by_place(model, x, C, patch).proved)
    assert not result.by_crown.any()


@pytest.mark.parametrize("name", ["mlp", "conv", "batch norm and skip", "colours"])
def test_crown_of_what_a_rectangle_reaches_is_as_tight_as_crown_of_the_image(name, monkeypatch):
    monkeypatch.setattr("lirpa_multinorm.verifier.patches.crown._PROSPECT", math.inf)
    model, x, _, C = problem(name, torch.float64)
    patch, state = PerturbationPatch(4, 4), NetworkState(model, x)
    place = torch.tensor([[3, 5]])
    lower, upper = patch.boxes(x[1], place)
    region = Region((lower + upper) / 2, PerturbationLinf(1.0, clip=(lower, upper)))
    ((expected, _),) = BoundedModule(model).compute_region_bounds(
        [region], C[1:2], "CROWN", bound_upper=False
    )
    with torch.no_grad():
        differences = Differences(state.network, state.reaches, x, C)
        crown = RectangleCrown(differences, Rectangle(3, 5, 4, 4), 1)
        result = crown.bounds(C[1], expected[0].detach() + 1e-3, tighten=True)
    assert (result >= expected[0] - 1e-6).all() and crown.work > 0


def test_hand_numbers():
    """Two pixels in a row, and max(0, 2 a - b) against 0.25: each pixel is free once."""
    model = with_parameters(
        dense(2, 1, 2), torch.tensor([[2.0, -1.0]]), 0, torch.tensor([[1.0], [0.0]]), [0.0, 0.25]
    )
    x, C = torch.tensor([[[[0.8, 0.4]]]]), torch.tensor([[[1.0, -1.0]]])
    bounded, enough = BoundedModule(model), torch.zeros(1, 1)
    result = bounded.bound_patches(x, PerturbationPatch(1, 1), C, enough, settings=EVERY)
    # First pixel: 2 a - 0.4 in [-0.4, 1.6]; second: 1.6 - b in [0.6, 1.6].
    torch.testing.assert_close(result.places.flatten(), torch.tensor([-0.25, 0.35]))
    assert result.proved.flatten().tolist() == [False, True]
    torch.testing.assert_close(result.bounds, torch.tensor([[-0.25]]))


def test_a_neuron_that_stays_inactive_costs_nothing_behind_it():
    def passes(bias):
        model = with_parameters(dense(4, 1, 2), 0.1, bias, 1.0, [0.0, -5.0])
        x, C = torch.zeros(1, 1, 2, 2), torch.tensor([[[1.0, -1.0]]])
        bounded = BoundedModule(model)
        result = bounded.bound_patches(x, PerturbationPatch(2, 2), C, torch.zeros(1, 1))
        return float(result.passes)

    # The network has 4 + 2 coefficients, and one linear form of one neuron.
    assert passes(-10.0) == pytest.approx(0.5 + 4 / 6)
    assert passes(0.0) == pytest.approx(0.5 + 5 / 6)


def test_an_image_is_given_up_at_its_worst_place():
    model, x, y, C = problem("conv")
    bounded, patch = BoundedModule(model), PerturbationPatch(6, 6)
    enough = 0.7 * torch.matmul(C, model(x).detach().unsqueeze(2)).squeeze(2)
    quick = bounded.bound_patches(x, patch, C, enough)
    whole = bounded.bound_patches(x, patch, C, enough, settings=EVERY)
    lost = ~whole.proved.flatten(1).all(1)
    assert lost.any() and (quick.passes[lost] < whole.passes[lost]).all()
    assert torch.equal(quick.proved.flatten(1).all(1), ~lost)


def test_a_deadline_leaves_places_open():
    model, x, y, C = problem("conv")
    bounded, patch = BoundedModule(model), PerturbationPatch(2, 2)
    late = time.perf_counter() - 1
    for settings in (EVERY, PatchSettings()):
        result = bounded.bound_patches(x, patch, C, torch.zeros(C.shape[:2]), late, settings)
        assert result.bounds.isneginf().all() and not result.proved.any()


def test_rows_that_are_not_asked_for_decide_nothing():
    model, x, y, C = problem("conv")
    C = torch.cat([C, -C], 1)
    enough = torch.full(C.shape[:2], -10.0)
    enough[:, 2:] = -math.inf
    result = BoundedModule(model).bound_patches(x, PerturbationPatch(2, 2), C, enough)
    assert result.proved.all()


@pytest.mark.parametrize("broken", ["smooth", "too large"])
def test_other_networks_are_bounded_place_by_place(broken, monkeypatch):
    model, x, _, C = problem("conv")
    if broken == "smooth":
        model[1] = nn.Sigmoid()
    else:
        monkeypatch.setattr("lirpa_multinorm.verifier.affine_matrices._MAX_PULLED", 10)
    patch = PerturbationPatch(9, 9)
    result = BoundedModule(model).bound_patches(
        x, patch, C, torch.zeros(C.shape[:2]), settings=EVERY
    )
    assert torch.equal(result.places, by_place(model, x, C, patch).places)
    assert result.passes.tolist() == [4] * 2


def test_nan_is_never_proved():
    model, x, _, C = problem("conv")
    with torch.no_grad():
        model[-1].weight[0, 0] = 1e38  # infinite less infinite behind it
        model[-3].weight.mul_(1e38)
    with pytest.raises(NaNBoundError, match="contain NaN"):
        BoundedModule(model).bound_patches(x, PerturbationPatch(2), C, torch.zeros(C.shape[:2]))


def test_arguments_that_do_not_fit_are_refused():
    model, x, _, C = problem("conv")
    bounded, enough = BoundedModule(model), torch.zeros(C.shape[:2])
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        bounded.bound_patches(x, PerturbationPatch(13), C, enough)
    with pytest.raises(InvalidArgumentError, match="C must be a tensor"):
        bounded.bound_patches(x, PerturbationPatch(3), C[0], enough)
