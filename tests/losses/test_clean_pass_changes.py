"""The clean pass of a loss follows what no version counter tells, and refuses odd BatchNorm."""

import copy

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lirpa_multinorm import BoundedModule, build_loss
from lirpa_multinorm.errors import InvalidArgumentError, UnsupportedModelError
from tests.checks import assert_same
from tests.losses.cases import SETS, images
from tests.networks import batch_norm_conv, in_float64


def descent(step):
    """Statistics and weights after some steps on one batch."""
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded, loss = BoundedModule(model, perturbations=SETS).train(), build_loss("ibp", SETS)
    for _ in range(5):
        model.zero_grad()
        loss(bounded, x, y).value.backward()
        step(model)
    return model


def through_data(model):
    for parameter in model.parameters():
        parameter.data -= 0.1 * parameter.grad


def under_no_grad_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad


def through_a_vector(model):
    values = nn.utils.parameters_to_vector(model.parameters()).detach()
    gradient = nn.utils.parameters_to_vector([parameter.grad for parameter in model.parameters()])
    nn.utils.vector_to_parameters(values - 0.1 * gradient, model.parameters())


@pytest.mark.parametrize("step", [through_data, through_a_vector], ids=lambda step: step.__name__)
def test_weights_changed_in_ways_that_no_version_tells(step):
    torch.manual_seed(0)
    expected = descent(under_no_grad_in_place)
    torch.manual_seed(0)
    result = descent(step)
    assert_same(result.state_dict().values(), expected.state_dict().values(), 1e-8, 1e-12)
    assert int(result[1].num_batches_tracked) == 5


@pytest.mark.parametrize(
    "fill",
    [
        lambda buffer, array, part: array.__setitem__(slice(None), part.numpy()),
        lambda buffer, array, part: buffer.data.copy_(part),
    ],
    ids=["array", "data"],
)
def test_a_batch_that_is_filled_anew(fill):
    model, (x, y) = in_float64(batch_norm_conv), images()
    twin = copy.deepcopy(model).train()
    bounded, loss = BoundedModule(model, perturbations=SETS).train(), build_loss("ibp", SETS)
    array = numpy.empty(tuple(x.shape))
    buffer = torch.from_numpy(array)
    for part in (x, x * 0.5, x.flip(2)):
        fill(buffer, array, part)
        logits = twin(part)
        with torch.no_grad():
            assert torch.allclose(loss(bounded, buffer, y).logits, logits, rtol=1e-12)
    assert_same(model.buffers(), twin.buffers(), 1e-8, 1e-12)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model[1], "eps", 0.5),
        lambda model: model[5].weight.data.mul_(3),
        lambda model: model[1].eval(),
        lambda model: model[3].register_forward_hook(lambda layer, x, output: 2 * output),
    ],
    ids=["eps", "weight", "mode", "hook"],
)
def test_what_changes_between_two_losses_of_one_batch_is_followed_by_both_parts(change):
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded, loss = BoundedModule(model, perturbations=SETS).train(), build_loss("ibp", SETS)
    loss(bounded, x, y)
    change(model)
    result = loss(bounded, x, y, eps_scale=0.0)
    assert torch.allclose(result.logits, copy.deepcopy(model)(x), rtol=1e-9)
    assert result.value.item() == pytest.approx(F.cross_entropy(result.logits, y).item(), rel=1e-9)


def test_a_gradient_in_the_inputs_that_is_asked_for_late():
    result = []
    for late in (True, False):
        torch.manual_seed(0)
        model, (x, y) = in_float64(batch_norm_conv), images()
        bounded = BoundedModule(model, perturbations=SETS).train()
        x.requires_grad_(not late)
        bounded(x)
        x.requires_grad_()
        build_loss("ibp", SETS)(bounded, x, y).value.backward()
        result.append(x.grad)
    assert torch.allclose(*result, rtol=1e-12) and float(result[0].norm()) > 0


def test_weights_swapped_there_and_back_are_the_same_pass():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=SETS).train()
    bounded(x)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    build_loss("ibp", SETS)(bounded, x, y)
    assert int(model[1].num_batches_tracked) == 1


# --- BatchNorm of other kinds ---------------------------------------------------------------------


class Ghost(nn.BatchNorm1d):
    """Normalises parts of the batch by their own statistics."""

    def forward(self, x):
        return (
            torch.cat([super(Ghost, self).forward(part) for part in x.chunk(2)])
            if self.training
            else super().forward(x)
        )


def doubled(layer):
    original = layer.forward
    layer.forward = lambda x: 2 * original(x)
    return layer


@pytest.mark.parametrize(
    "make", [lambda: Ghost(8), lambda: doubled(nn.BatchNorm1d(8))], ids=["class", "instance"]
)
def test_a_batch_norm_with_a_forward_of_its_own_is_refused_and_left_alone(make):
    model, x = nn.Sequential(nn.Linear(4, 8), make(), nn.ReLU(), nn.Linear(8, 3)), torch.rand(6, 4)
    forward, twin = model[1].__dict__.get("forward"), copy.deepcopy(model).train()
    bounded = BoundedModule(model, perturbations=SETS).train()
    if forward is None:
        assert torch.allclose(bounded(x), twin(x))
    with pytest.raises(UnsupportedModelError, match="'1' has a forward of its own.*eval"):
        build_loss("ibp", SETS)(bounded, x, torch.arange(6) % 3)
    assert model[1].__dict__.get("forward") is forward


def test_labels_that_are_refused_leave_the_statistics_alone():
    model, (x, y) = in_float64(batch_norm_conv), images()
    bounded = BoundedModule(model, perturbations=SETS).train()
    with pytest.raises(InvalidArgumentError, match="y"):
        build_loss("ibp", SETS)(bounded, x, y + 5)
    assert int(model[1].num_batches_tracked) == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (lambda bounded, x: (nn.DataParallel(bounded), x), "bounded is a DataParallel.*its module"),
        (lambda bounded, x: (bounded.model, x), "bounded is a Sequential.*BoundedModule.model."),
        (lambda bounded, x: (bounded, x.numpy()), "x is a ndarray.*torch.as_tensor"),
    ],
    ids=["DataParallel", "model", "numpy"],
)
def test_other_things_than_a_bounded_module_and_a_tensor(arguments, words):
    model, (x, y) = in_float64(batch_norm_conv), images()
    with pytest.raises(InvalidArgumentError, match=f"^{words}"):
        build_loss("ibp", SETS)(*arguments(BoundedModule(model, perturbations=SETS), x), y)


def test_a_batch_norm_without_running_statistics_is_named():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 3)
    )
    with pytest.raises(UnsupportedModelError, match="BatchNorm without running statistics"):
        build_loss("ibp", SETS)(BoundedModule(model).train(), torch.rand(6, 4), torch.arange(6) % 3)
