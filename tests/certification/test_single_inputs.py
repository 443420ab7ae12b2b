"""Networks whose graph takes one input only.

Images and sets go one by one, with the same results.
"""

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    CertifySettings,
    PerturbationGeometric,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    PerturbationPatch,
    certify,
    certify_to,
)
from lirpa_multinorm.audit.graphs import Lambda
from lirpa_multinorm.certification import CERTIFIED, STAGES
from lirpa_multinorm.errors import InvalidArgumentError
from tests.networks import Merging, Single

SETS = [PerturbationLinf(0.02), PerturbationL2Box(0.05), PerturbationL1Box(0.1)]


def body():
    return nn.Sequential(
        nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


def images(model, count):
    x = torch.rand(count, 1, 4, 4)
    y = model(x.flatten(1)).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return x, y


@pytest.mark.parametrize("kind", [Single, Merging])
@pytest.mark.parametrize("count, batch_size", [(1, 1), (5, 2), (5, 50)])
@pytest.mark.parametrize("sets", [SETS[:1], SETS], ids=["one_set", "three_sets"])
def test_certify_says_what_it_says_of_the_network_that_takes_batches(kind, count, batch_size, sets):
    model = body()
    x, y = images(model, count)
    y[0] = model(x[:1].flatten(1)).argmax()
    settings = CertifySettings(batch_size=batch_size)
    result = certify(kind(model), x, y, sets, settings)
    expected = certify(nn.Sequential(nn.Flatten(), model), x, y, sets, settings)
    assert result.status == expected.status and not result.errors
    assert result.status[0][0] == CERTIFIED and result.correct.tolist() == expected.correct.tolist()


@pytest.mark.parametrize(
    "method", [name for name, stage in STAGES.items() if stage.takes is PerturbationLpBox]
)
def test_every_method_alone(method):
    model = body()
    x, y = images(model, 2)
    y = model(x.flatten(1)).argmax(1)
    result = certify(
        Single(model),
        x,
        y,
        [PerturbationLinf(1e-4), PerturbationL2Box(1e-4)],
        CertifySettings([method], None, time_limit=20),
    )
    assert result.status == [[CERTIFIED] * 2] * 2, result.errors


def test_records_of_such_a_network(tmp_path):
    model = body()
    x, y = images(model, 3)
    result = certify_to(tmp_path, Single(model), x, y, SETS)
    assert result.status == certify(Single(model), x, y, SETS).status and not result.errors


def test_a_network_for_another_batch_is_refused():
    model = body()
    x, y = images(model, 4)
    with pytest.raises(
        InvalidArgumentError, match=r"cannot be applied to an input of shape \(1, 1, 4, 4\)"
    ):
        certify(Lambda(lambda inputs: model(inputs.reshape(4, 16))), x, y, SETS)


@pytest.mark.parametrize("method", ["IBP", "Grid-IBP", "Places-IBP"])
@pytest.mark.parametrize(
    "perturbation",
    [PerturbationGeometric(rotation=1, splits={"rotation": 0.1}), PerturbationPatch(1)],
)
def test_transforms_and_patches_of_a_model_of_single_inputs(perturbation, method):
    """The same as of a model of batches: attacks, splitting, and cells or places by IBP."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)).eval()
    single = Lambda(lambda x: plain(x.reshape(1, 1, 5, 5)))
    x = torch.rand(3, 1, 5, 5)
    y = plain(x).argmax(1)
    result, expected = (
        certify(model, x, y, [perturbation], CertifySettings([method])) for model in (single, plain)
    )
    assert result.status == expected.status and not result.errors
