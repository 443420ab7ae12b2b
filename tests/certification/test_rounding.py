"""Certificates hold for networks as they run: rounding cannot eat up their margins."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationLinf,
    certify,
    certify_to,
    read_records,
)
from lirpa_multinorm.certification.records import read_header
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import Region
from lirpa_multinorm.verifier.branching.branch_and_bound import BranchSettings

SET = [PerturbationLinf(0.1)]
BOUNDS = ["IBP", "CROWN-IBP", "CROWN", "Lipschitz", "SDP-CROWN"]


def swallowing(order, huge=2.0**27):
    """f_0 - f_1 is 0.05 - x_0 in exact arithmetic.

    In float32 it is 0.05 where huge terms swallow x_0.

    Args:
        order: Of the three terms of f_0; sums run in any order.
        huge: What two of them, which cancel, are.
    """
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    columns = torch.tensor([[-1.0, 1.0, -1.0], [0.0, 0.0, 0.0]])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])[list(order)])
        model[0].bias.copy_(torch.tensor([0.0, huge, huge])[list(order)])
        model[2].weight.copy_(columns[:, list(order)])
        model[2].bias.copy_(torch.tensor([0.0, -0.05]))
    return model.eval()


@pytest.mark.parametrize("rounding", ["probable", "proved"])
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)])
def test_what_huge_terms_can_swallow_is_not_certified(order, method, rounding):
    model, x, y = swallowing(order), torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    result = certify(model, x, y, SET, CertifySettings([method], None, rounding=rounding))
    assert result.status[0][0] != "certified"


def test_without_rounding_such_a_network_is_certified_although_the_truth_is_otherwise():
    x, y, result = torch.tensor([[0.5, 0.5]]), torch.tensor([0]), []
    for order in ((0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0)):
        settings = CertifySettings(["IBP", "CROWN"], None, rounding="ignored")
        result.append(certify(swallowing(order), x, y, SET, settings).status[0][0])
        exact = swallowing(order).double()(x.double())[0]
        assert exact[0] < exact[1]
    assert "certified" in result


def narrow(margin):
    """A linear network whose margin on the set is a given number."""
    model = nn.Sequential(nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 0.4 - margin], dtype=torch.float64))
    return model


@pytest.mark.parametrize(
    "margin, status", [(1e-3, "certified"), (1e-12, "certified"), (1e-16, "unknown")]
)
@pytest.mark.parametrize("method", ["IBP", "CROWN", "BaB"])
def test_a_certificate_needs_more_than_rounding_errors(method, margin, status):
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    result = certify(narrow(margin), x, torch.tensor([0]), SET, CertifySettings([method], None))
    assert result.status[0][0] == status


@pytest.mark.parametrize("enough", [0.0, 0.03, 0.2])
def test_branch_and_bound_proves_more_than_is_enough(enough):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)
    ).eval()
    center, ball = torch.tensor([[0.5, 0.5]]), PerturbationLinf(0.4)
    line = torch.linspace(0.1, 0.9, 200)
    least = model(torch.cartesian_prod(line, line)).min().item()
    for shift, proved in ((1e-2, True), (-1e-2, False)):
        with torch.no_grad():
            model[-1].bias.add_(enough + shift - least)
            least = enough + shift
            bounded = BoundedModule(model)
            bound = bounded.branch_and_bound(
                Region(center, ball), torch.ones(1, 1), settings=BranchSettings(enough=enough)
            )
        assert (float(bound) > enough) == proved and float(bound) <= least + 1e-5


def test_an_unknown_operator_is_said_and_needs_a_generous_margin(tmp_path):
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 2)).eval(),
        torch.rand(3, 2),
    )
    with pytest.warns(UserWarning, match="rounding errors are not bounded.*sigmoid"):
        certify_to(
            tmp_path,
            model,
            x,
            model(x).argmax(1),
            [PerturbationLinf(1e-3)],
            CertifySettings(["IBP"], None),
        )
    assert read_header(tmp_path / "records.jsonl")["rounding"] == "not bounded"


@pytest.mark.parametrize("rounding", ["probable", "proved", "ignored"])
def test_records_say_what_certificates_withstand_and_old_ones_are_read(tmp_path, rounding):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.rand(3, 2)
    settings = CertifySettings(["IBP"], None, rounding=rounding)
    result = certify_to(tmp_path, model, x, model(x).argmax(1), [PerturbationLinf(1e-3)], settings)
    path = tmp_path / "records.jsonl"
    assert read_header(path)["rounding"] == rounding
    old = path.read_text().replace(f', "rounding": "{rounding}"', "")
    assert "rounding" not in old
    path.write_text(old)
    assert read_records(tmp_path).status == result.status


def test_nothing_is_certified_where_errors_are_infinite():
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3e38, 0.0], [0.0, 0.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
    result = certify(
        model, torch.tensor([[0.5, 0.5]]), torch.tensor([0]), SET, CertifySettings(["IBP"], None)
    )
    assert result.status[0][0] != "certified" and not math.isnan(float(result.margin[0, 0]))


def test_settings_name_what_rounding_may_be():
    with pytest.raises(InvalidArgumentError, match="rounding='often'"):
        CertifySettings(rounding="often")
