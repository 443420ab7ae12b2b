"""The loss makes the clean pass.

Whatever was called before, its value, gradients and statistics are those of one.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf, build_loss
from lirpa_multinorm.errors import UnsupportedModelError
from tests.losses.cases import CASES, SEED, SETS, assert_same_gradients, by_hand, gradients, images
from tests.losses.slow_intervals import clean_statistics
from tests.networks import batch_norm_conv, in_float64

CASE = CASES["cure_mixed"]


def under_no_grad(bounded, x, y):
    with torch.no_grad():
        bounded(x)


def evaluation_between(bounded, x, y):
    bounded(x)
    bounded.eval()
    bounded(x[:5])
    bounded.compute_bounds(x[:2], method="IBP")
    bounded.train()


def natural_step_first(bounded, x, y):
    F.cross_entropy(bounded(x), y).backward()


def backward_of_another_loss(bounded, x, y):
    build_loss("ibp", SETS)(bounded, x, y).value.backward()


def bounds_under_no_grad(bounded, x, y):
    with torch.no_grad():
        bounded(x)
        bounded.compute_bounds(x, method="CROWN")


def traced_in_eval_mode(bounded, x, y):
    bounded.eval()
    bounded.compute_bounds(x, method="IBP")
    bounded.train()


def equal_values_elsewhere(bounded, x, y):
    bounded(x.clone())


#: What comes before the loss; each passes the batch at most once, or as often as the model says.
BEFORE = {
    "nothing": lambda bounded, x, y: None,
    "clean pass": lambda bounded, x, y: bounded(x),
    "clean pass under no_grad": under_no_grad,
    "evaluation in between": evaluation_between,
    "natural loss with a backward of its own": natural_step_first,
    "another loss with a backward of its own": backward_of_another_loss,
    "bounds under no_grad": bounds_under_no_grad,
    "traced in eval mode": traced_in_eval_mode,
    "equal values in another tensor": equal_values_elsewhere,
}


def with_running_momentum(momentum):
    def make():
        model = batch_norm_conv()
        for layer in model:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = momentum
        return model

    return make


@pytest.mark.parametrize(
    "make",
    [batch_norm_conv, with_running_momentum(None), with_running_momentum(0.0123456789)],
    ids=["momentum 0.1", "momentum None", "momentum 0.0123456789"],
)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_value_gradient_and_statistics_are_those_of_one_clean_pass(make, before):
    model, (x, y) = in_float64(make), images()
    twin = copy.deepcopy(model).train()
    twin(x)
    bounded = BoundedModule(model, perturbations=SETS).train()
    before(bounded, x, y)
    model.zero_grad()
    result = build_loss(CASE.name, CASE.sets, **CASE.options)(
        bounded, x, y, generator=torch.Generator().manual_seed(SEED)
    )
    for (name, buffer), other in zip(model.named_buffers(), twin.buffers()):
        assert torch.allclose(buffer, other, rtol=1e-12), name
    expected, _, _ = by_hand(model, x, y, CASE, clean_statistics(model, x))
    assert result.value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(gradients(result.value, model), gradients(expected, model))
    assert torch.allclose(result.logits, copy.deepcopy(twin)(x), rtol=1e-12)


def test_a_batch_norm_that_is_frozen_is_bounded_with_its_running_statistics():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=SETS).train()
    bounded(x * 0.5)
    model[1].eval()
    statistics = clean_statistics(model, x)
    statistics[1] = (model[1].running_mean.clone(), model[1].running_var.clone())
    conv, norm = model[0], model[1]
    clean = norm.weight.view(1, -1, 1, 1) * (
        conv(x) - statistics[1][0].view(1, -1, 1, 1)
    ) / torch.sqrt(statistics[1][1] + norm.eps).view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    hidden = model[4](clean.relu().flatten(1))
    statistics[5] = (hidden.mean(0), hidden.var(0, unbiased=False))
    case = CASES["ibp"]
    result = build_loss("ibp", SETS)(bounded, x, y)
    expected, _, _ = by_hand(model, x, y, case, statistics)
    assert result.value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert_same_gradients(gradients(result.value, model), gradients(expected, model))


@pytest.mark.parametrize("name", ["cure", "mtl", "cc", "exp", "joint", "random"])
def test_frozen_layers_get_no_gradient_and_the_others_theirs(name):
    model, (x, y), case = in_float64(batch_norm_conv), images(), CASES[name]
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    bounded = BoundedModule(model, perturbations=SETS).train()
    result = build_loss(case.name, case.sets, **case.options)(
        bounded, x, y, generator=torch.Generator().manual_seed(SEED)
    )
    expected, _, _ = by_hand(model, x, y, case, clean_statistics(model, x))
    result.value.backward()
    assert all(parameter.grad is None for parameter in model[0].parameters())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert_same_gradients(
        [parameter.grad for parameter in trained], torch.autograd.grad(expected, trained)
    )


@pytest.mark.parametrize("name", ["cure", "mtl", "cc", "exp", "joint", "max"])
def test_gradients_add_up_over_batches(name):
    model, (x, y), case = in_float64(batch_norm_conv), images(6), CASES[name]
    loss = build_loss(case.name, case.sets, **case.options)
    bounded = BoundedModule(model, perturbations=SETS).train()
    expected = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for part in (slice(0, 3), slice(3, 6)):  # one backward pass each, no step between
        result = loss(bounded, x[part], y[part], generator=torch.Generator().manual_seed(SEED))
        result.value.backward()
        value, _, _ = by_hand(model, x[part], y[part], case, clean_statistics(model, x[part]))
        expected = [old + new for old, new in zip(expected, gradients(value, model))]
    assert_same_gradients([parameter.grad for parameter in model.parameters()], expected)


def test_logits_are_free_where_a_pass_was_made(monkeypatch):
    model, (x, y), calls = in_float64(batch_norm_conv), images(), []
    model.register_forward_hook(lambda layer, inputs, output: calls.append(layer.training))
    bounded = BoundedModule(model, perturbations=SETS).train()
    loss = build_loss("ibp", SETS)
    loss(bounded, x, y)
    calls.clear()
    logits = bounded(x)
    assert loss(bounded, x, y).logits is logits
    assert calls == [True]


def test_every_step_on_one_batch_changes_the_statistics():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded, loss = BoundedModule(model, perturbations=SETS).train(), build_loss("ibp", SETS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 4):
        optimizer.zero_grad()
        loss(bounded, x, y).value.backward()
        optimizer.step()
        assert int(model[1].num_batches_tracked) == step


def test_update_bn_of_torch():
    model, (x, _) = in_float64(batch_norm_conv), images()
    twin = copy.deepcopy(model)
    bounded = BoundedModule(model, perturbations=SETS)
    update_bn([x, x * 0.5, x.flip(2)], bounded)
    update_bn([x, x * 0.5, x.flip(2)], twin)
    assert all(torch.equal(item, other) for item, other in zip(model.buffers(), twin.buffers()))


def test_radii_of_examples_follow_their_blocks():
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).double(), images(6)
    eps = torch.tensor([0.0, 0.0, 0.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    sets = [PerturbationLinf(eps, None), PerturbationL2Box(eps, None)]
    bounded = BoundedModule(model, perturbations=sets)
    result = build_loss("random", sets, region_inf="set", region_2="set")(bounded, x, y)
    small = F.cross_entropy(model(x), y, reduction="none")
    losses = torch.cat(result.per_example)
    without = [any(torch.isclose(loss, item) for item in small[:3]) for loss in losses]
    assert sum(without) == 3 and float(losses[~torch.tensor(without)].min()) > float(small.max())


def test_dropout_in_training_is_refused_by_the_loss_and_not_by_a_forward_pass():
    model, x, y = (
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        torch.rand(6, 4),
        [0] * 6,
    )
    bounded = BoundedModule(model, perturbations=SETS).train()
    assert not torch.equal(bounded(x), bounded(x))
    with pytest.raises(UnsupportedModelError, match="Dropout.*'2'.*eval"):
        build_loss("ibp", SETS)(bounded, x, torch.tensor(y))
    model[2].eval()
    assert torch.isfinite(build_loss("ibp", SETS)(bounded, x, torch.tensor(y)).value)
