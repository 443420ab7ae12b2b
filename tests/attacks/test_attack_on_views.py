"""The attack runs on views of the model: as strong, and no pass more than it needs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm.attacks import AttackSettings, matmul_precision, pgd
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.utils.modes import evaluating
from tests.attacks.view_models import MODELS, SETS, batch, trained


def attacked(model, **options):
    """Points and their losses in float32."""
    x, y = batch(24)
    points = pgd(
        model,
        x,
        y,
        SETS,
        AttackSettings(steps=20, loss="ce", **options),
        torch.Generator().manual_seed(0),
    )
    with evaluating(model), torch.no_grad():
        return points, [F.cross_entropy(model(point), y, reduction="none") for point in points]


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bfloat16"},
        {"precision": "bfloat16", "channels_last": True},
        {"channels_last": True},
        {"try_center": False},
    ],
    ids=["bfloat16", "bfloat16_channels_last", "channels_last", "no_center"],
)
def test_points_stay_inside_and_are_as_strong(options):
    model, (x, _) = trained(MODELS["flat"]), batch(24)
    _, expected = attacked(model)
    points, losses = attacked(model, **options)
    with evaluating(model), torch.no_grad():
        start = F.cross_entropy(model(x), batch(24)[1])
    for ball, point, loss, best in zip(SETS, points, losses, expected):
        assert point.dtype == torch.float32 and ball.contains(point, x, tolerance=1e-6).all()
        assert loss.mean() - start > 0.97 * (best.mean() - start) > 0


def test_without_the_centre_one_pass_less():
    model, (x, y) = trained(MODELS["flat"]), batch()
    calls = []
    model[3].register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for choice in (True, False):
        calls.clear()
        pgd(model, x, y, SETS, AttackSettings(steps=2, try_center=choice))
        counts.append(len(calls))
    assert counts[0] == counts[1] + 1


def test_without_the_centre_nan_gives_the_centre():
    x = torch.full((2, 3), 0.5)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(math.nan)
    points = pgd(model, x, torch.tensor([0, 1]), SETS, AttackSettings(steps=2, try_center=False))
    assert all(torch.equal(point, x) for point in points)


def test_tf32_is_allowed_for_the_block_only():
    switch = getattr(
        torch.backends.cuda.matmul, "fp32_precision", None
    )  # before torch 2.9 there is none
    with pytest.raises(RuntimeError, match="inside"), matmul_precision("tf32"):
        assert (
            torch.backends.cuda.matmul.fp32_precision == "tf32"
            if switch
            else torch.backends.cuda.matmul.allow_tf32
        )
        raise RuntimeError("inside")
    assert getattr(torch.backends.cuda.matmul, "fp32_precision", None) == switch


BAD = {
    "precision": (
        {"precision": "float16"},
        "^precision='float16' is unknown; use float32, tf32, bfloat16",
    ),
    "channels_last": ({"channels_last": "yes"}, "^channels_last='yes' must be True or False"),
    "try_center": ({"try_center": None}, "^try_center=None must be True or False"),
}


@pytest.mark.parametrize("options,message", BAD.values(), ids=BAD)
def test_bad_settings(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        AttackSettings(**options)
