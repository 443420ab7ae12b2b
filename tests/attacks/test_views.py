"""What the attack runs does what the model does in eval mode, and leaves no trace on it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm.attacks import AttackSettings, attack_view, pgd
from lirpa_multinorm.utils.modes import evaluating
from tests.attacks.view_models import MODELS, SETS, batch, residual, trained

every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


layouts = pytest.mark.parametrize("channels_last", [False, True], ids=["usual", "channels_last"])


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
    model = residual().eval()
    assert attack_view(model) is model


def test_float64_models_stay_float64():
    model, (x, _) = trained(MODELS["flat"]).double().eval(), batch()
    expected = model(x.double())
    for precision in ("float32", "bfloat16"):
        result = attack_view(model, precision)(x.double())
        assert result.dtype == torch.float64 and torch.allclose(result, expected)


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
    ours = model[0].forward
    model[0].forward = lambda inputs: 2 * ours(inputs)
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
    result = torch.autograd.grad(view[4:](seen[-1]).sum(), seen)
    assert all(item.is_contiguous(memory_format=torch.channels_last) for item in (*seen, *result))
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    assert torch.allclose(torch.autograd.grad(view(x).sum(), x)[0], expected, atol=1e-6)
