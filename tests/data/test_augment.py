"""Augmentations: exact pixels, every choice with the right frequency, by name, on any device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lirpa_multinorm import data
from lirpa_multinorm.errors import InvalidArgumentError


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def test_cifar_equals_flip_pad_and_crop_one_by_one():
    images = torch.rand(64, 3, 6, 5)
    out = data.augment_cifar(images, generator())
    assert out.shape == images.shape
    choices = set()
    for before, after in zip(images, out):
        result = None
        for flip in (False, True):
            padded = np.pad(
                (before.flip(-1) if flip else before).numpy(), ((0, 0), (2, 2), (2, 2)), mode="edge"
            )
            for top in range(5):
                for left in range(5):
                    if np.array_equal(padded[:, top : top + 6, left : left + 5], after.numpy()):
                        result = (flip, top, left)
        assert result is not None
        choices.add(result)
    # 64 draws out of 50: all flips and shifts turn up, and images differ in theirs.
    assert {c[0] for c in choices} == {False, True}
    assert {c[1] for c in choices} == {c[2] for c in choices} == set(range(5))
    assert len(choices) > 20


def test_shift_moves_by_a_pixel_and_never_mirrors():
    image = torch.rand(1, 1, 5, 6)
    out = data.augment_shift(image.expand(400, 1, 5, 6), generator())
    padded = torch.from_numpy(np.pad(image[0, 0].numpy(), 1, mode="edge"))
    moved = [[padded[top : top + 5, left : left + 6] for left in range(3)] for top in range(3)]
    counts = [[sum(torch.equal(item, after[0]) for after in out) for item in row] for row in moved]
    assert sum(map(sum, counts)) == 400 and min(map(min, counts)) > 15


def test_tinyimagenet_equals_flip_and_crop_one_by_one():
    # The pixel's value is its place, so that the corner of the result tells what was drawn.
    place = (torch.arange(64)[:, None] * 64 + torch.arange(64)).float()
    count = 4000
    images = place.expand(count, 2, 64, 64) + torch.tensor([0.0, 0.5])[:, None, None]
    out = data.augment_tinyimagenet(images, generator())
    assert out.shape == (count, 2, 56, 56)
    drawn = []
    for after in out[:300]:
        flip = bool(after[0, 0, 1] < after[0, 0, 0])
        top, corner = divmod(int(after[0, 0, 0]), 64)
        left = 63 - corner if flip else corner
        before = images[0].flip(-1) if flip else images[0]
        assert torch.equal(after, before[:, top : top + 56, left : left + 56])
        drawn.append((flip, top, left))
    assert {c[1] for c in drawn} == {c[2] for c in drawn} == set(range(9))
    # All 9 places and both flips are equally frequent: 4000 draws, six standard deviations.
    flips = (out[:, 0, 0, 1] < out[:, 0, 0, 0]).float().mean()
    assert float(flips) == pytest.approx(0.5, abs=6 * 0.5 / count**0.5)
    shares = (out[:, 0, 0, 0] // 64).long().bincount(minlength=9) / count
    assert torch.allclose(shares, torch.tensor(1 / 9), atol=6 * (8 / 81 / count) ** 0.5)


@pytest.mark.parametrize(
    "augment", [data.augment_cifar, data.augment_shift, data.augment_tinyimagenet]
)
def test_draws_come_from_the_generator(augment):
    images = torch.rand(8, 1, 64, 64)
    single, two, other = (augment(images, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(single, two) and not torch.equal(single, other)
    state = torch.get_rng_state()
    augment(images, generator())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    single = augment(images)
    torch.manual_seed(7)
    assert torch.equal(augment(images), single)


@pytest.mark.parametrize(
    "augment", [data.augment_cifar, data.augment_shift, data.augment_tinyimagenet]
)
def test_the_generator_may_live_elsewhere(augment):
    out = augment(torch.empty(8, 3, 64, 64, device="meta"), generator())
    assert out.device.type == "meta" and out.shape[:2] == (8, 3)


def test_tinyimagenet_refuses_smaller_images():
    assert data.augment_tinyimagenet(torch.rand(2, 3, 56, 60)).shape == (2, 3, 56, 56)
    with pytest.raises(InvalidArgumentError, match="images: 56x55 pixels.*'tinyimagenet'.*'cifar'"):
        data.augment_tinyimagenet(torch.rand(2, 3, 56, 55))


def test_augmentations_by_name():
    assert data.augmentation("none") is None
    assert data.augmentation("cifar") is data.augment_cifar
    assert data.augmentation("tinyimagenet") is data.augment_tinyimagenet
    with pytest.raises(
        InvalidArgumentError,
        match="'cifar10'. Did you mean 'cifar'. Known: none, cifar, shift, tinyimagenet",
    ):
        data.augmentation("cifar10")
    with pytest.raises(InvalidArgumentError, match="name: no augmentation 3. Known: none"):
        data.augmentation(3)
