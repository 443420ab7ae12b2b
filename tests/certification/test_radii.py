"""Certified radii by bisection: hand numbers, the certificates behind them, and resuming."""

import json
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import PerturbationLinf, PerturbationLpBox, PerturbationPatch, certify
from lirpa_multinorm.certification import CertifySettings, certified_radii
from lirpa_multinorm.certification import radii as radii_module
from lirpa_multinorm.cli import main
from lirpa_multinorm.errors import InvalidArgumentError, RecordsError
from tests.toy import SPEC, images

QUICK = CertifySettings(["IBP", "CROWN"], attack=None)
SETS = [PerturbationLinf(0.5), PerturbationLpBox(2, 0.5), PerturbationLpBox(1, 2.0)]


def identity():
    """A network whose margin at (a, b) is a - b, so that its radii are known."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    model[0].weight.data.copy_(torch.eye(2))
    return model


def test_radii_enclose_those_of_a_linear_network():
    """(a - b) / 2 for l_inf, (a - b) / sqrt(2) for l_2, a - b for l_1."""
    x, y = torch.tensor([[0.7, 0.3], [0.55, 0.45], [0.2, 0.3]]), torch.tensor([0, 0, 0])
    radii = certified_radii(identity(), x, y, SETS, QUICK, steps=10)
    for row, share, ball in zip(range(3), (0.5, 1 / math.sqrt(2), 1.0), SETS):
        for image, margin in enumerate((0.4, 0.1)):
            gap = ball.eps / 2**10
            exact = margin * share
            assert exact - gap <= radii.certified[row, image] <= exact + 1e-6
            assert exact - 1e-6 <= radii.not_certified[row, image] <= exact + gap
    assert (radii.certified[:, 2] == 0).all(), "a misclassified image has no radius"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.1, 0.3, 0.7])
def test_an_image_certified_at_the_largest_radius_has_no_other(dtype, eps):
    """Also where the radius is rounded in the inputs' type."""
    x, y = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([0])
    ball = PerturbationLpBox("inf", eps / 2)
    radii = certified_radii(identity().to(dtype), x, y, [ball], QUICK, steps=3)
    assert float(radii.certified) == pytest.approx(eps / 2)
    assert radii.not_certified.isinf().all()
    assert radii.summary()[0]["certified at the largest"] == 1


def test_each_radius_is_certified_and_the_next_one_is_not():
    torch.manual_seed(0)
    model, (x, y) = SPEC.build().eval(), images(12)
    sets = [PerturbationLinf(0.3), PerturbationLpBox(2, 1.0)]
    radii = certified_radii(model, x, y, sets, CertifySettings(["IBP", "CROWN"]), steps=5)
    assert ((radii.certified > 0) & radii.not_certified.isfinite()).any()
    assert (radii.certified < radii.not_certified).all()
    assert (radii.certified < radii.falsified).all(), "certified where an attack succeeds"
    for row, ball in enumerate(sets):
        for image in (radii.certified[row] > 0).nonzero().flatten().tolist():
            alone = ball.with_eps(float(radii.certified[row, image]))
            single = slice(image, image + 1)
            assert certify(model, x[single], y[single], [alone], QUICK).status == [["certified"]]


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    torch.manual_seed(0)
    problem = SPEC.build().eval(), *images(12), [PerturbationLinf(0.3)], QUICK
    whole = certified_radii(*problem, steps=4, folder=tmp_path / "whole")
    certify_to = radii_module.certify_to

    def stopping(folder, *arguments, **options):
        if folder.name == "step_02":
            raise KeyboardInterrupt
        return certify_to(folder, *arguments, **options)

    monkeypatch.setattr(radii_module, "certify_to", stopping)
    with pytest.raises(KeyboardInterrupt):
        certified_radii(*problem, steps=4, folder=tmp_path / "part")
    monkeypatch.setattr(radii_module, "certify_to", certify_to)
    with pytest.raises(RecordsError):
        certified_radii(*problem, steps=4, folder=tmp_path / "part")
    again = certified_radii(*problem, steps=4, folder=tmp_path / "part", resume=True)
    assert torch.equal(again.certified, whole.certified)
    first, second = (
        json.loads((tmp_path / n / "radii.json").read_text()) for n in ("whole", "part")
    )
    assert first == second
    assert [entry["certified"] for entry in first["images"]] == whole.certified.T.tolist()


BAD = {
    "patch": ([PerturbationPatch(1)], 3, "has not one radius"),
    "per_image": ([PerturbationLinf(torch.tensor([0.1]))], 3, "has not one radius"),
    "negative": ([PerturbationLinf(0.1)], -1, "steps: -1"),
    "fraction": ([PerturbationLinf(0.1)], 1.5, "steps: 1.5"),
}


@pytest.mark.parametrize("sets, steps, message", BAD.values(), ids=BAD)
def test_what_cannot_be_bisected_is_refused(sets, steps, message):
    x, y = torch.tensor([[0.7, 0.3]]), torch.tensor([0])
    with pytest.raises(InvalidArgumentError, match=message):
        certified_radii(identity(), x, y, sets, QUICK, steps=steps)


def test_the_command_prints_and_records_them(checkpoint, file, tmp_path, capsys):
    words = ["radius", str(checkpoint), "--data", str(file), "--no-progress", "--no-attack"]
    words += [
        "--methods",
        "IBP",
        "--steps",
        "2",
        "--eps-inf",
        "0.2",
        "--output",
        str(tmp_path / "r"),
    ]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "average certified radius" in printed and "l_inf" in printed
    written = json.loads((tmp_path / "r" / "radii.json").read_text())
    assert len(written["images"]) == 12 and written["summary"][0]["largest radius tried"] == 0.2
    assert main(words) == 2  # the folder holds records
    assert main([*words, "--resume"]) == 0
    assert main(["radius", str(checkpoint), "--resume"]) == 2
    assert "--resume needs --output" in capsys.readouterr().err
