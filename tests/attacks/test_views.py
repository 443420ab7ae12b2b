"""What the attack runs does what the model does in eval mode, and leaves no trace on it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.attacks import AttackSettings, attack_view, matmul_precision, pgd
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.utils.modes import evaluating

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.5), PerturbationL1Box(1.0)]


class Residual(nn.Module):
    """A block that is no Sequential."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + F.relu(self.norm(self.conv(x)))


class Rows(nn.Module):
    """A flattening layer that only the usual layout allows."""

    def forward(self, x):
        return x.view(len(x), -1)


def head(channels, flatten=None):
    return [
        nn.ReLU(),
        flatten or nn.Flatten(),
        nn.Linear(channels * 36, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ]


def conv(**options):
    return nn.Conv2d(2, 4, 3, padding=1, **options)


MODELS = {
    "flat": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), *head(4)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Sequential(conv()), nn.BatchNorm2d(4)), nn.Sequential(*head(4))
    ),
    "empty_inside": lambda: nn.Sequential(conv(), nn.Sequential(), nn.BatchNorm2d(4), *head(4)),
    "no_bias": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(4), *head(4)),
    "not_affine": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4, affine=False), *head(4)),
    "neither": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(4, affine=False), *head(4)),
    "no_statistics": lambda: nn.Sequential(
        conv(), nn.BatchNorm2d(4, track_running_stats=False), *head(4)
    ),
    "norm_first": lambda: nn.Sequential(nn.BatchNorm2d(2), conv(), *head(4)),
    "two_norms": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4), *head(4)),
    "reflected": lambda: nn.Sequential(conv(padding_mode="reflect"), nn.BatchNorm2d(4), *head(4)),
    "groups": lambda: nn.Sequential(conv(groups=2), nn.BatchNorm2d(4), *head(4)),
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "views": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), *head(4, Rows())),
    "residual_inside": lambda: nn.Sequential(conv(), nn.BatchNorm2d(4), Residual(), *head(4)),
    "weight_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(4), *head(4)
    ),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["usual", "channels_last"])


def batch(size=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(size, 2, 6, 6, generator=generator), torch.arange(size) % 3


def trained(build):
    """A model in training mode whose BatchNorm statistics and weights are not the initial ones."""
    torch.manual_seed(0)
    model, (x, y) = build().train(), batch(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for shift in range(5):
        F.cross_entropy(model(x * (1 + shift) - 0.3), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model


def run(model, view, x):
    """Logits and their gradients at the inputs."""
    x = x.clone().requires_grad_(True)
    logits = (model if view is None else view)(x)
    return logits.detach(), torch.autograd.grad(F.cross_entropy(logits, batch(len(x))[1]), x)[0]


@every_model
@layouts
def test_view_is_the_model_in_eval_mode(build, channels_last):
    model, (x, _) = trained(build), batch()
    with evaluating(model):
        expected, slope = run(model, None, x)
        logits, gradient = run(model, attack_view(model, "float32", channels_last), x)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.allclose(gradient, slope, atol=1e-5)


@every_model
@layouts
def test_bfloat16_is_near_and_gives_float32(build, channels_last):
    model, (x, _) = trained(build), batch()
    with evaluating(model):
        expected, _ = run(model, None, x)
        logits, gradient = run(model, attack_view(model, "bfloat16", channels_last), x)
    assert logits.dtype == gradient.dtype == torch.float32
    assert (logits - expected).norm() < 0.1 * expected.norm().clamp(min=1)


def test_other_models_run_as_they_are():
    model = Residual().eval()
    assert attack_view(model) is model


def test_float64_models_stay_float64():
    model, (x, _) = trained(MODELS["flat"]).double().eval(), batch()
    expected = model(x.double())
    for precision in ("float32", "bfloat16"):
        found = attack_view(model, precision)(x.double())
        assert found.dtype == torch.float64 and torch.allclose(found, expected)


def test_batchnorm_is_gone_only_behind_convolutions():
    view = attack_view(trained(MODELS["nested"]).eval())
    kinds = [type(layer) for layer in view]
    assert nn.BatchNorm2d not in kinds and kinds.count(nn.BatchNorm1d) == 1 and len(kinds) == 7


def hooked_at_top(model):
    return model


def hooked_conv(model):
    return model[0]


def hooked_norm(model):
    return model[1]


@pytest.mark.parametrize("where", [hooked_at_top, hooked_conv, hooked_norm])
def test_hooks_keep_their_effect(where):
    model, (x, _) = trained(MODELS["flat"]).eval(), batch()
    where(model).register_forward_hook(lambda module, inputs, output: 2 * output)
    assert torch.allclose(attack_view(model)(x), model(x), atol=1e-5)


def test_a_forward_of_one_object_keeps_its_effect():
    model, (x, _) = trained(MODELS["flat"]).eval(), batch()
    own = model[0].forward
    model[0].forward = lambda inputs: 2 * own(inputs)
    assert torch.allclose(attack_view(model)(x), model(x), atol=1e-5)


@every_model
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_the_model_keeps_everything(build, precision):
    model, (x, y) = trained(build), batch()
    model[1].eval()  # one layer in a mode of its own
    modes = [module.training for module in model.modules()]
    state = {
        name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()
    }
    pgd(model, x, y, SETS, AttackSettings(steps=2, precision=precision, channels_last=True))
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict(keep_vars=True).items():
        before, copy = state[name]
        assert value is before and torch.equal(value, copy) and value.grad is None
        assert value.is_contiguous()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_new_view_follows_the_weights():
    model, (x, _) = trained(MODELS["flat"]).eval(), batch()
    attack_view(model)
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert torch.allclose(attack_view(model)(x), model(x), atol=1e-5)


# --- the attack on it -----------------------------------------------------------------------------


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


@pytest.mark.parametrize("channels", [1, 3])
def test_values_and_gradients_stay_channels_last(channels):
    """From the first convolution on, even of one input channel, and back from the Linear layer.

    The Linear layer is the one behind Flatten.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(channels, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 3),
    ).eval()
    view, x = (
        attack_view(model, channels_last=True),
        torch.rand(2, channels, 8, 8, requires_grad=True),
    )
    seen = [view[0](x)]
    for layer in list(view)[1:4]:
        seen.append(layer(seen[-1]))
    found = torch.autograd.grad(view[4:](seen[-1]).sum(), seen)
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in (*seen, *found))
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.allclose(torch.autograd.grad(view(x).sum(), x)[0], expected, atol=1e-6)
