"""Views of images with two parts hidden, and the bounds for patches that they offer."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationLinf,
    PerturbationPatch,
    certify,
    margin_matrix,
)
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.certification import CERTIFIED, FALSIFIED
from lirpa_multinorm.errors import InvalidArgumentError, UnsupportedModelError
from lirpa_multinorm.models import DoubleMasking, Normalize, Saturation, build_model
from lirpa_multinorm.verifier.patches.offered import offering_layer
from tests.checks import assert_same, assert_within

SHAPES = {"square": (1, 9, 9), "wide": (2, 8, 11), "few places": (1, 6, 6)}
SIZES = [(3, 3), (2, 3), (1, 1), (4, 4)]


def masked(shape, seed=0, **options):
    """A network whose views differ, with options of the whole model."""
    torch.manual_seed(seed)
    options = {"width": 4, "patch_side": 3, "masks_per_side": 2, **options}
    return build_model("masked_cnn", shape, 4, **options).eval()


@pytest.mark.parametrize(
    ("side", "patch", "masks"),
    [(28, 5, 4), (28, 5, 6), (28, 2, 3), (28, 5, 24), (9, 2, 2), (6, 3, 4), (5, 1, 5), (7, 6, 2)],
)
def test_every_patch_lies_within_a_mask_but_no_mask_hides_all(side, patch, masks):
    layer = DoubleMasking(nn.Flatten(), (1, side, side), patch, masks)
    assert layer.hidden_rows.shape == (masks, side)
    for begin in range(side - patch + 1):
        assert layer.hidden_rows[:, begin : begin + patch].all(1).any()
    assert not layer.hidden_rows.all(1).any()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_output_is_the_largest_of_least_margins(shape):
    model, x = masked(shape)[-1], torch.rand(3, *shape)
    rows, columns = model.hidden_rows.float(), model.hidden_columns.float()
    masks = [torch.outer(row, column) for row in rows for column in columns]

    def margins(i, j):
        visible = (1 - masks[i]) * (1 - masks[j])
        view = torch.cat([x * visible, (1 - visible).expand(len(x), 1, -1, -1)], 1)
        logits = model.network(view)
        others = [logits[:, [m for m in range(4) if m != k]].amax(1) for k in range(4)]
        return logits - torch.stack(others, 1)

    every = range(len(masks))
    expected = torch.stack(
        [torch.stack([margins(i, j) for j in every]).amin(0) for i in every]
    ).amax(0)
    assert_same(model(x), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bounds_at_every_place_hold_for_any_patch_there(shape, size):
    model = masked(shape, mean=[0.3] * shape[0], std=[0.5] * shape[0], saturation=(0.1, 0.9))
    x, C = torch.rand(2, *shape), torch.eye(4).expand(2, 4, 4)
    bounded, patch = BoundedModule(model), PerturbationPatch(*size)
    enough = torch.full((2, 4), -torch.inf)
    lower = bounded.bound_patches(x, patch, C, enough).places
    upper = -bounded.bound_patches(x, patch, -C, enough).places
    rows, columns = patch.places(x)
    for row, column in itertools.product(range(rows), range(columns)):
        patched = x.repeat(30, 1, 1, 1, 1)
        fill = torch.rand(30, 2, shape[0], *size)
        fill[::2] = fill[::2].round()
        patched[..., row : row + size[0], column : column + size[1]] = fill
        values = model(patched.flatten(0, 1)).view(30, 2, 4)
        assert_within(values, (lower[:, row, column], upper[:, row, column]))
    assert lower.isfinite().all() == (max(size) <= 3)  # a larger patch lies within no mask


def test_hand_numbers():
    # One row of pixels, two masks of 2: views hide none of 1 pixel, the sum is a class's logit.
    class Sums(nn.Module):
        def forward(self, views):
            total = views[:, 0].sum((1, 2))
            return torch.stack([total, 0.5 * torch.ones_like(total)], 1)

    model = DoubleMasking(Sums(), (1, 3, 3), patch_side=2, masks_per_side=2).eval()
    x = torch.ones(1, 1, 3, 3)
    # A view without one mask has 5 pixels, without neighbours 3, without all four masks none.
    lone, neighbours, opposite = 5 - 0.5, 3 - 0.5, 2 - 0.5
    margins = model.margins(x)[0, :, :, 0]
    assert margins[0].tolist() == [lone, neighbours, neighbours, opposite]
    assert model(x).tolist() == [[opposite, -lone]]
    lower, upper = model.patch_bounds(x, 2, 2)
    assert lower[0, 0, 0].tolist() == [opposite, -lone]
    assert upper[0, 0, 0].tolist() == [lone, -opposite]


@pytest.mark.filterwarnings("error")
def test_certified_images_need_no_attack_and_the_others_are_attacked():
    model, x = masked((1, 8, 8), seed=1), torch.rand(12, 1, 8, 8)
    with torch.no_grad():  # near a tie of two classes
        last = model[-1].network[-1]
        last.bias.copy_(torch.tensor([0.0, 0.0, -9.0, -9.0]))
        last.bias[:2] -= model[-1].network(torch.cat([x, 0 * x], 1)).mean(0)[:2]
    y, patch = model(x).argmax(1), PerturbationPatch(3)
    bounded, C = BoundedModule(model), margin_matrix(y, 4)
    result = bounded.bound_patches(x, patch, C, torch.zeros(12, 3))
    clearly, proved = (result.bounds > 1e-3).all(1), (result.bounds > 0).all(1)
    assert clearly.any() and not proved.all()
    attack = AttackSettings(steps=8, restarts=2)
    certified = certify(model, x, y, [patch], CertifySettings(attack=attack))
    statuses, methods = certified.status[0], certified.method[0]
    held = torch.tensor([status == CERTIFIED for status in statuses])
    assert (clearly <= held).all() and (held <= proved).all()
    assert {method for method, is_held in zip(methods, held) if is_held} == {"Patches"}
    broken = [image for image, status in enumerate(statuses) if status == FALSIFIED]
    assert broken
    for image in broken:
        point = certified.adversarial[0, image].unsqueeze(0)
        assert model(point).argmax(1) != y[image] and patch.contains(point, x[image : image + 1])
        differs = (point != x[image]).any(1)[0].nonzero()
        row, column = differs.amin(0).clamp(max=5).tolist()
        assert not result.proved[image, row, column]


def test_training_takes_random_views_and_offers_no_bounds():
    model, x = masked((1, 8, 8)), torch.rand(40, 1, 8, 8)
    model.train()
    with torch.no_grad():
        torch.manual_seed(1)
        drawn = model(x)
        assert not torch.equal(model(x), drawn)
        torch.manual_seed(1)
        assert torch.equal(model(x), drawn)
    with pytest.raises(UnsupportedModelError, match="eval"):
        model[-1].patch_bounds(x, 2, 2)


def _hooked():
    model = masked((1, 8, 8))
    model[-1].register_forward_hook(lambda *_: 0)
    return model


class _Doubled(DoubleMasking):
    def forward(self, x):
        return 2 * super().forward(x)


class _Called(DoubleMasking):
    def __call__(self, x):
        return 2 * super().__call__(x)


class _Unmasked(DoubleMasking):
    def _logits(self, x, visible):
        return super()._logits(x, torch.ones_like(visible))


def _mixing_views():
    inner = [nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten(), nn.Linear(128, 4)]
    return DoubleMasking(nn.Sequential(*inner), (1, 8, 8), 2, 2)


def _subclass(kind):
    return kind(nn.Sequential(nn.Flatten(), nn.Linear(128, 4)), (1, 8, 8), 2, 2)


NOT_OFFERED = {
    "a hook": _hooked,
    "a forward of its own": lambda: _subclass(_Doubled),
    "a call of its own": lambda: _subclass(_Called),
    "views of its own": lambda: _subclass(_Unmasked),
    "a network that mixes views": _mixing_views,
    "a layer that mixes pixels": lambda: nn.Sequential(nn.AvgPool2d(1), *masked((1, 8, 8))),
    "a layer behind": lambda: nn.Sequential(*masked((1, 8, 8)), nn.Linear(4, 4)),
}


@pytest.mark.parametrize("make", NOT_OFFERED.values(), ids=NOT_OFFERED)
def test_bounds_are_not_taken_where_they_are_not_the_models(make):
    model = make().eval()
    with pytest.raises(UnsupportedModelError):
        BoundedModule(model).bound_patches(
            torch.rand(1, 1, 8, 8), PerturbationPatch(2), torch.eye(4)[None], torch.zeros(1, 4)
        )


def test_a_hook_of_all_modules_takes_the_offer_away():
    model = masked((1, 8, 8))
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert offering_layer(model) is None
    finally:
        hook.remove()
    assert offering_layer(model) is model[-1]
    assert offering_layer(nn.Sequential()) is None


@pytest.mark.parametrize("layer", [Normalize([0.5], [2.0]), Saturation(0.1, 0.9), nn.Identity()])
def test_layers_that_work_pixel_by_pixel_may_stand_in_front(layer):
    model = nn.Sequential(layer, nn.Sequential(*masked((1, 8, 8))))
    result = BoundedModule(model).bound_patches(
        torch.rand(1, 1, 8, 8), PerturbationPatch(2), torch.eye(4)[None], torch.zeros(1, 4)
    )
    assert result.bounds.isfinite().all()


def test_norms_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match="PerturbationPatch"):
        BoundedModule(masked((1, 8, 8)), perturbations=[PerturbationLinf(0.1)]).compute_bounds(
            torch.rand(1, 1, 8, 8), method="IBP"
        )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"masks_per_side": 1}, "masks_per_side"),
        ({"patch_side": 9}, "masks_per_side"),
        ({"masks_per_side": 7}, "masks_per_side"),
        ({"masks_per_side": 2.5}, "masks_per_side"),
        ({"patch_side": 0}, "patch_side"),
        ({"patch_side": 2.5}, "patch_side"),
        ({"candidates": 0}, "candidates"),
    ],
    ids=str,
)
def test_masks_that_do_not_fit_are_refused(options, named):
    with pytest.raises(InvalidArgumentError, match=named):
        DoubleMasking(nn.Flatten(), (1, 8, 8), **{"patch_side": 3, "masks_per_side": 2, **options})
    with pytest.raises(InvalidArgumentError, match="in_shape"):
        DoubleMasking(nn.Flatten(), (64,))


def test_an_empty_batch_has_empty_outputs():
    assert masked((1, 8, 8))(torch.rand(0, 1, 8, 8)).shape == (0, 4)
