"""Certification against transforms: sound, decided by both sides, recorded, beside balls."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationGeometric,
    PerturbationLinf,
    certify,
    certify_to,
)
from lirpa_multinorm.certification import CERTIFIED, ERROR, FALSIFIED, UNKNOWN, cascade
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import cnn_small
from lirpa_multinorm.transforms import transformed

ROTATION = PerturbationGeometric(rotation=12, splits={"rotation": 0.5})
SETS = {
    "rotation": ROTATION,
    "translation": PerturbationGeometric(translation=0.7, splits={"translation_x": 0.05}),
    "all": PerturbationGeometric(
        rotation=3, scale=0.04, shear=0.03, contrast=0.1, brightness=0.02, translation_x=(0, 0.2)
    ),
}


def problem():
    """Return a smooth network that classifies by position, images of blobs, and its labels."""
    torch.manual_seed(3)
    model = cnn_small((1, 10, 10), 4, width=4).eval()
    places = torch.arange(10.0)
    x = torch.stack(
        [
            torch.exp(-((places - 2 - k).view(-1, 1) ** 2 + (places - 7 + k / 2) ** 2) / 6)
            for k in range(6)
        ]
    ).unsqueeze(1)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("name", SETS)
def test_no_certified_image_is_broken_and_every_broken_one_is(name):
    model, x, y = problem()
    result = certify(model, x, y, [SETS[name]])
    assert CERTIFIED in result.status[0]
    points = SETS[name].points(500, x)
    for image, status in enumerate(result.status[0]):
        if status == CERTIFIED:
            moved = transformed(x[image : image + 1].expand(len(points), -1, -1, -1), points)
            assert (model(moved).argmax(1) == y[image]).all()
        if status == FALSIFIED:
            assert model(result.adversarial[0, image][None]).argmax(1) != y[image]


def test_adaptive_splitting_proves_what_the_fixed_grid_proves():
    model, x, y = problem()
    sets = [
        PerturbationGeometric(rotation=2, splits={"rotation": 0.1}),
        PerturbationGeometric(translation=0.05, splits={"translation_x": 0.02}),
    ]
    adaptive = certify(model, x, y, sets, CertifySettings(attack=None))
    grid = certify(model, x, y, sets, CertifySettings(["Grid-IBP"], attack=None))
    assert CERTIFIED in grid.status[0]
    for ours, published in zip(adaptive.status, grid.status):
        for status, other in zip(ours, published):
            assert status == CERTIFIED or other != CERTIFIED
    assert "Splitting" in adaptive.method[0] and "Grid-IBP" in grid.method[0]
    # The search itself finds counterexamples.
    assert {FALSIFIED, CERTIFIED} >= set(adaptive.status[0])


def test_transforms_beside_a_ball_are_recorded_and_resumed(tmp_path):
    model, x, y = problem()
    sets = [PerturbationLinf(0.01), ROTATION]
    first = certify_to(tmp_path, model, x, y, sets, CertifySettings(batch_size=4))
    again = certify_to(tmp_path, model, x, y, sets, CertifySettings(batch_size=4), resume=True)
    assert again.status == first.status and again.perturbations[1].name == "R(12)"
    assert first.summary()["sets"][1] == ROTATION.title()
    single = [certify(model, x, y, [item]).status[0] for item in sets]
    assert [[status == CERTIFIED for status in row] for row in first.status] == [
        [status == CERTIFIED for status in row] for row in single
    ]


def test_nan_is_never_certified():
    model, x, y = problem()
    with torch.no_grad():
        model[-1].bias[:] = math.nan
    with pytest.raises(InvalidArgumentError, match="NaN"):
        certify(model, x, y, [ROTATION])


def test_a_model_that_is_not_piecewise_linear_is_left_open_with_a_warning():
    _, x, _ = problem()
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 5), nn.Sigmoid(), nn.Linear(5, 4)).eval()
    y = model(x).argmax(1)
    with pytest.warns(UserWarning, match="Splitting is left out"):
        result = certify(model, x, y, [ROTATION], CertifySettings(attack=None))
    assert set(result.status[0]) == {UNKNOWN}
    # Interval arithmetic of the host bounds it cell by cell.
    small = PerturbationGeometric(rotation=0.5, splits={"rotation": 0.1})
    result = certify(model, x, y, [small], CertifySettings(["Grid-IBP"], attack=None))
    assert CERTIFIED in result.status[0]


def test_a_search_ends_at_its_limit(monkeypatch):
    model, x, y = problem()
    settings = CertifySettings(time_limit=1e-9, attack=None)
    result = certify(model, x, y, [ROTATION], settings)
    assert CERTIFIED not in result.status[0] and ERROR not in result.status[0]
    assert cascade.clock() > 0


def test_a_search_ends_where_no_bound_can_be_enough():
    """What a bound must exceed is more than any output, which yet is no counterexample."""
    model, x, _ = problem()
    signs, enough = model(x).detach().sign(), torch.full((len(x), 4), 100.0)
    result = BoundedModule(model).bound_transforms(x, ROTATION, torch.diag_embed(signs), enough)
    assert result.bounds.isneginf().all() and not result.broken
    assert (result.cells <= len(ROTATION.cells(x)[0])).all()


@pytest.mark.parametrize("bias", [0.0, 50.0])
def test_networks_without_unstable_relus_are_split_where_pixels_move(bias):
    """A linear network, and one whose ReLUs are all active: no slack says where to cut."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(100, 5)]
    if bias:
        layers[1].bias.data.fill_(bias)
        layers += [nn.ReLU(), nn.Linear(5, 5)]
    model, (_, x, _) = nn.Sequential(*layers).eval(), problem()
    y = model(x).argmax(1)
    for perturbation in SETS.values():
        result = certify(model, x, y, [perturbation], CertifySettings(attack=None))
        assert set(result.status[0]) <= {CERTIFIED, FALSIFIED} and not result.errors
