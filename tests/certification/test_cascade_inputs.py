"""Certification in batches, with a radius per example and in any mode; input that it refuses."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    build_loss,
    certify,
    pgd,
)
from lirpa_multinorm.certification import FALSIFIED, cascade
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.models import cnn3
from tests.certification.small_network import BOUNDS, NO_ATTACK, SETS, inputs, network, own_labels

# --- batches and radii ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_batch_boundaries_do_not_matter(batch_size):
    torch.manual_seed(1)
    model, x = network(), inputs(20)
    y = own_labels(model, x)
    whole = certify(model, x, y, SETS, NO_ATTACK)
    parts = certify(model, x, y, SETS, dataclasses.replace(NO_ATTACK, batch_size=batch_size))
    assert (parts.status, parts.method) == (whole.status, whole.method)
    assert torch.allclose(parts.margin, whole.margin, atol=1e-5)


def test_a_radius_per_example_follows_its_image():
    torch.manual_seed(1)
    model, x = network(), inputs(23)
    y, eps = own_labels(model, x), torch.rand(23) * 0.1
    sets = [PerturbationLinf(eps), PerturbationL2Box(3 * eps)]
    result = certify(model, x, y, sets, CertifySettings(BOUNDS, batch_size=5, attack=None))
    for i in range(23):
        alone = [PerturbationLinf(float(eps[i])), PerturbationL2Box(3 * float(eps[i]))]
        single = certify(model, x[i : i + 1], y[i : i + 1], alone, NO_ATTACK)
        assert [row[i] for row in result.status] == [row[0] for row in single.status]
        assert torch.allclose(result.margin[:, i], single.margin[:, 0], atol=1e-5)
    assert result.perturbations[0].eps is eps
    settings = CertifySettings(BOUNDS, batch_size=5)
    attacked = certify(model, x, y, [PerturbationLinf(4 * eps)], settings)
    assert attacked.is_status(FALSIFIED).any()


def test_a_radius_of_the_wrong_length_is_refused():
    model, x = network(), inputs(4)
    with pytest.raises(InvalidArgumentError, match="eps has 3 values for a batch of 4"):
        certify(model, x, model(x).argmax(1), [PerturbationLinf(torch.full((3,), 0.1))])


def test_a_single_image():
    model, x = network(), inputs(1)
    result = certify(model, x, model(x).argmax(1), SETS)
    assert (
        result.margin.shape == (3, 1)
        and result.summary()["n"] == 1
        and result.summary()["clean"] == 1
    )


def test_radius_zero_certifies_what_is_correct():
    model, x = network(), inputs()
    y = own_labels(model, x)
    result = certify(model, x, y, [item.with_eps(0.0) for item in SETS]).summary()
    assert result["certified"] == [result["clean"]] * 3 and result["clean"] == 0.8


# --- modes ----------------------------------------------------------------------------------------


def mixed_modes():
    """A BatchNorm layer frozen in eval mode within a model in training mode."""
    model = cnn3((1, 4, 4), 3, width=2).train()
    model[1].eval()
    return model


@pytest.mark.parametrize("wrap", [lambda model: model, BoundedModule], ids=["plain", "bounded"])
def test_modes_statistics_and_gradients_are_left_alone(wrap):
    model = mixed_modes()
    modes = [module.training for module in model.modules()]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    x = torch.rand(5, 1, 4, 4)
    certify(wrap(model), x, torch.zeros(5, dtype=torch.long), SETS)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )


def test_an_interruption_restores_the_mode(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cascade.Cascade, "certify", interrupted)
    model, x = network().train(), inputs(4)
    with pytest.raises(KeyboardInterrupt):
        certify(model, x, model(x).argmax(1), SETS)
    assert all(module.training for module in model.modules())


# --- what is refused ------------------------------------------------------------------------------

WRONG = {
    "labels": lambda x, y: (x, y + 3),
    "count": lambda x, y: (x, y[:-1]),
    "float_labels": lambda x, y: (x, y.float()),
    "shape": lambda x, y: (x[:, :-1], y),
    "outside_clip": lambda x, y: (x * 3, y),
    "nan": lambda x, y: (x * math.nan, y),
    "dtype": lambda x, y: (x.double(), y),
    "empty": lambda x, y: (x[:0], y[:0]),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_wrong_inputs_are_refused_and_the_mode_is_restored(spoil):
    model, x = network().train(), inputs(4)
    with pytest.raises(InvalidArgumentError):
        certify(model, *spoil(x, model(x).argmax(1)), SETS)
    assert all(module.training for module in model.modules())


BAD = {
    "batch_size": ({"batch_size": 0}, "batch_size=0"),
    "method": ({"methods": ["IBP", "magic"]}, "'magic'"),
    "string": ({"methods": "IBP"}, r"methods='IBP' must be a list"),
}


@pytest.mark.parametrize("arguments, match", BAD.values(), ids=BAD)
def test_unusable_settings_are_refused(arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        CertifySettings(**arguments)


@pytest.mark.parametrize("call", ["certify", "pgd", "loss"])
def test_labels_on_another_device_are_refused(call):
    model, x, y = (
        nn.Sequential(nn.Linear(3, 2)),
        torch.rand(2, 3),
        torch.zeros(2, dtype=torch.long, device="meta"),
    )
    sets = [PerturbationLinf(0.1)]
    calls = {
        "certify": lambda: certify(model, x, y, sets),
        "pgd": lambda: pgd(model, x, y, sets),
        "loss": lambda: build_loss("ibp", sets)(BoundedModule(model), x, y),
    }
    with pytest.raises(InvalidArgumentError, match="labels is on meta.*labels.to"):
        calls[call]()
