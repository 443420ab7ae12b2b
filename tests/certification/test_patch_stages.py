"""Certification against patches, beside balls: statuses, records and both stages."""

import math

import pytest
import torch

from lirpa_multinorm import AttackSettings, CertifySettings, PerturbationLinf, certify, certify_to
from lirpa_multinorm.certification import CERTIFIED, FALSIFIED, STAGES, read_records
from lirpa_multinorm.certification.stage_list import stages_of
from lirpa_multinorm.errors import InvalidArgumentError, RecordsError
from lirpa_multinorm.perturbations.patch import PerturbationPatch
from tests.certification.recorded_runs import content, same
from tests.networks import conv, pixels

SETS = [PerturbationLinf(0.02), PerturbationPatch(1), PerturbationPatch(2, 1)]
SETTINGS = CertifySettings(["IBP"], AttackSettings(steps=4), batch_size=4)


@torch.no_grad()
def problem(count=10, spread=0.5):
    """A network and images, the less robust the larger the spread."""
    torch.manual_seed(0)
    model, x = conv().eval(), pixels(10, 2, 4, 4)
    model[-1].bias.sub_(spread * model(x).mean(0))
    model[-1].weight.mul_(1 + 2 * spread)
    return model, x[:count], model(x[:count]).argmax(1)


def test_images_are_certified_and_falsified_and_both_are_right():
    model, x, y = problem()
    result = certify(model, x, y, SETS, SETTINGS)
    for place in (1, 2):
        assert CERTIFIED in result.status[place] and FALSIFIED in result.status[place]
        assert set(result.method[place]) <= {"PGD", "Patches", None, ""}
    for (place, image), point in result.adversarial.items():
        assert SETS[place].contains(point.unsqueeze(0), x[image : image + 1]).all()
        assert model(point.unsqueeze(0)).argmax() != y[image]
    for status, wider in zip(result.status[1], result.status[2]):
        assert wider != CERTIFIED or status == CERTIFIED


def test_the_stage_is_added_where_it_is_needed():
    names = [stage.name for stage in stages_of(SETTINGS, SETS)]
    assert names == ["IBP", "Patches"]
    assert [stage.name for stage in stages_of(SETTINGS, SETS[:1])] == ["IBP"]
    ours = CertifySettings(["IBP", "Places-IBP"])
    assert [stage.name for stage in stages_of(ours, SETS)] == ["IBP", "Places-IBP"]


def test_place_by_place_certifies_nothing_more():
    model, x, y = problem(spread=0)
    plain, ours = (
        certify(model, x, y, SETS[1:], CertifySettings([method], None))
        for method in ("Places-IBP", "Patches")
    )
    for published, status in zip(plain.status, ours.status):
        assert CERTIFIED in published
        assert all(b == CERTIFIED for a, b in zip(published, status) if a == CERTIFIED)


@pytest.mark.parametrize("method", ["Patches", "Places-IBP"])
def test_wrong_images_and_nan_are_never_certified(method):
    model, x, y = problem()
    settings = CertifySettings([method], None)
    wrong = certify(model, x, (y + 1) % 3, SETS[1:], settings)
    assert CERTIFIED not in wrong.status[0]
    with torch.no_grad():
        model[0].weight.mul_(1e30)
        model[2].weight.mul_(1e30)
    broken = certify(model, x, y, SETS[1:], CertifySettings([method], None, rounding="ignored"))
    assert CERTIFIED not in broken.status[0]


def test_records_are_kept_and_gone_on_with(tmp_path):
    model, x, y = problem()
    whole = certify_to(tmp_path / "whole", model, x, y, SETS, SETTINGS)
    file = tmp_path / "whole" / "records.jsonl"
    lines = file.read_text().splitlines()
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "records.jsonl").write_text("\n".join(lines[:6]) + "\n")
    again = certify_to(tmp_path / "part", model, x, y, SETS, SETTINGS, resume=True)
    assert same(whole, again)
    assert content(file) == content(tmp_path / "part" / "records.jsonl")
    assert same(read_records(file), whole)


def test_records_of_another_patch_are_refused(tmp_path):
    model, x, y = problem(4)
    certify_to(tmp_path, model, x, y, SETS[:2], SETTINGS)
    with pytest.raises(RecordsError):
        certify_to(tmp_path, model, x, y, [SETS[0], PerturbationPatch(3)], SETTINGS, resume=True)


def test_a_patch_that_does_not_fit_is_refused():
    model, x, y = problem(2)
    with pytest.raises(InvalidArgumentError, match="does not fit"):
        certify(model, x, y, [PerturbationPatch(5)], SETTINGS)


def test_stages_stop_at_a_deadline():
    from lirpa_multinorm import BoundedModule
    from lirpa_multinorm.certification import OpenPairs

    model, x, y = problem(3)
    is_open = (torch.arange(3) != y.unsqueeze(1)).unsqueeze(0)
    pairs = OpenPairs.where(x, y, [SETS[1]], is_open)
    with torch.no_grad():
        for name in ("Patches", "Places-IBP"):
            bounds = STAGES[name].bound(BoundedModule(model), pairs, -math.inf)
            assert bounds.shape == (6,) and bounds.isneginf().all()
