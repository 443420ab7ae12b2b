"""Certification stage by stage: what attacks and bounds get to see, and the statuses they give."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    certify,
    margin_matrix,
)
from lirpa_multinorm.certification import (
    CERTIFIED,
    EVALUATION_ATTACK,
    EVALUATION_ATTACKS,
    FALSIFIED,
    METHODS,
    MISCLASSIFIED,
    STATUSES,
    UNKNOWN,
    attacking,
    stages,
)
from tests.certification.small_network import BOUNDS, NO_ATTACK, SETS, inputs, network, own_labels

USUAL = {CERTIFIED, FALSIFIED, UNKNOWN, MISCLASSIFIED}

# --- stages ---------------------------------------------------------------------------------------


def test_stages_see_open_pairs_only(monkeypatch):
    """Wrong, falsified or certified pairs and proved classes are not bounded again."""
    torch.manual_seed(1)
    model, x = network(), inputs(60)
    y, calls = own_labels(model, x), []

    class Spy(stages.Stage):
        def bound(self, bounded, pairs, deadline):
            calls.append((self.name, pairs, known[self.name].bound(bounded, pairs, deadline)))
            return calls[-1][2]

    known = dict(stages.STAGES)
    for name in BOUNDS:
        monkeypatch.setitem(stages.STAGES, name, Spy(name))
    sets = [PerturbationLinf(0.02), PerturbationL2Box(0.05)]
    result = certify(model, x, y, sets, CertifySettings(BOUNDS, batch_size=60))
    assert [name for name, _, _ in calls] == list(BOUNDS) and {"clean", "PGD", *BOUNDS} == set(
        result.method[0]
    )
    for place, (status, method) in enumerate(zip(result.status, result.method)):
        before = {
            i for i in range(60) if status[i] in (CERTIFIED, UNKNOWN)
        }  # open after the attacks
        for name, pairs, _ in calls:
            assert set(pairs.image[pairs.set_index == place].tolist()) == before
            before -= {i for i in before if method[i] == name}
    for (_, earlier, bounds), (_, later, _) in zip(calls, calls[1:]):
        proved = {key for key, value in zip(keys(earlier), bounds.tolist()) if value > 0}
        assert proved and not proved & set(keys(later)) and set(keys(later)) < set(keys(earlier))


def keys(pairs):
    return list(zip(pairs.set_index.tolist(), pairs.image.tolist(), pairs.rival.tolist()))


def test_crown_of_other_networks_is_the_hosts():
    torch.manual_seed(1)
    model, x = (
        nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3)).eval(),
        torch.rand(20, 6),
    )
    y, sets = own_labels(model, x), [PerturbationLinf(0.02)]
    result = certify(model, x, y, sets, CertifySettings(["CROWN"], None))
    lower, _ = BoundedModule(model, perturbations=sets).compute_bounds(
        x, C=margin_matrix(y, 3), method="CROWN"
    )
    assert (
        result.is_status(CERTIFIED)[0].tolist() == (lower > 0).all(1).tolist()
        and "CROWN" in result.method[0]
    )


def test_more_methods_certify_more():
    torch.manual_seed(1)
    model, x = network(), inputs(80)
    y = own_labels(model, x)
    shares = [
        certify(model, x, y, SETS, CertifySettings(METHODS[:count], None)).is_status(CERTIFIED)
        for count in (1, 2, 3)
    ]
    assert (
        (shares[0] <= shares[1]).all()
        and (shares[1] <= shares[2]).all()
        and shares[2].sum() > shares[0].sum()
    )


# --- statuses -------------------------------------------------------------------------------------


def test_methods_and_statuses_belong_together():
    torch.manual_seed(1)
    model, x = network(), inputs(60)
    result = certify(
        model,
        x,
        own_labels(model, x),
        [*SETS, PerturbationLinf(0.3)],
        CertifySettings(METHODS[:-1]),
    )  # branch and bound leaves nothing unknown here
    allowed = {CERTIFIED: set(METHODS), FALSIFIED: {"PGD"}, UNKNOWN: {""}, MISCLASSIFIED: {"clean"}}
    for statuses, methods, margins in zip(result.status, result.method, result.margin):
        assert all(method in allowed[status] for status, method in zip(statuses, methods))
        for status, margin in zip(statuses, margins.tolist()):
            assert (margin > 0) == (status == CERTIFIED)
            assert (margin == -math.inf) == (status in (FALSIFIED, MISCLASSIFIED))
    assert {status for row in result.status for status in row} == USUAL


def test_statuses_add_up_and_union_is_per_image():
    torch.manual_seed(1)
    model, x = network(), inputs(53)
    settings = CertifySettings(BOUNDS, batch_size=20)
    result = certify(model, x, own_labels(model, x), SETS, settings)
    assert sum(result.is_status(status).sum(1) for status in STATUSES).tolist() == [53] * 3
    by_image = [all(row[i] == CERTIFIED for row in result.status) for i in range(53)]
    summary = result.summary()
    assert summary["certified_union"] == sum(by_image) / 53 and summary["n"] == 53
    assert summary["certified_union"] <= min(summary["certified"])
    assert summary["certified_union"] <= summary["attacked_union"] <= summary["clean"]


def test_misclassified_inputs_are_wrong_for_every_set():
    model, x = network(), inputs()
    y = own_labels(model, x)
    result = certify(model, x, y, SETS, CertifySettings(BOUNDS))
    wrong = (model(x).argmax(1) != y).tolist()
    assert any(wrong)
    for row in result.status:
        assert [status == MISCLASSIFIED for status in row] == wrong


def test_ties_are_not_correct():
    model = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(model[0].weight), nn.init.zeros_(model[0].bias)
    result = certify(model, torch.rand(3, 2), torch.tensor([0, 1, 0]), SETS[:1])
    assert result.status == [[MISCLASSIFIED] * 3]


def test_without_attack_nothing_is_falsified_and_no_certificate_is_lost():
    torch.manual_seed(1)
    model, x = network(), inputs()
    y, sets = own_labels(model, x), [PerturbationLinf(0.15), PerturbationL2Box(0.3)]
    with_attack, without = (
        certify(model, x, y, sets, CertifySettings(BOUNDS)),
        certify(model, x, y, sets, NO_ATTACK),
    )
    assert with_attack.is_status(FALSIFIED).any() and not without.is_status(FALSIFIED).any()
    assert torch.equal(with_attack.is_status(CERTIFIED), without.is_status(CERTIFIED))


# --- attacks --------------------------------------------------------------------------------------

FEW_STEPS = dataclasses.replace(EVALUATION_ATTACK, steps=3)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_adversarial_examples_do_not_depend_on_the_batch(batch_size):
    torch.manual_seed(1)
    model, x = network(), inputs()
    y, sets = (
        own_labels(model, x),
        [PerturbationLinf(0.15), PerturbationL2Box(0.3), PerturbationL1Box(0.5)],
    )
    settings = CertifySettings(["IBP"], [FEW_STEPS, dataclasses.replace(FEW_STEPS, loss="ce")], 13)
    result = certify(model, x, y, sets, settings)
    other = certify(model, x, y, sets, dataclasses.replace(settings, batch_size=batch_size))
    assert result.adversarial and result.adversarial.keys() == other.adversarial.keys()
    assert all(
        torch.allclose(point, other.adversarial[key], atol=1e-5)
        for key, point in result.adversarial.items()
    )
    assert torch.equal(result.prediction, model(x).argmax(1))


def test_another_seed_starts_elsewhere():
    torch.manual_seed(1)
    model, x = network(), inputs()
    settings = [CertifySettings([], FEW_STEPS, seed=seed) for seed in (0, 0, 1)]
    result = [
        certify(model, x, model(x).argmax(1), [PerturbationL2Box(0.3)], item).adversarial
        for item in settings
    ]
    assert all(torch.equal(result[0][key], result[1][key]) for key in result[0])
    assert any(
        key not in result[2] or not torch.equal(result[0][key], result[2][key]) for key in result[0]
    )


def test_later_attacks_see_only_what_is_not_broken(monkeypatch):
    torch.manual_seed(1)
    model, x = network(), inputs()
    calls, attack = [], attacking.attack_regions

    def spy(model, regions, labels, settings, starts):
        calls.append((settings.loss, sum(len(item.center) for item in regions)))
        return attack(model, regions, labels, settings, starts)

    monkeypatch.setattr(attacking, "attack_regions", spy)
    result = certify(model, x, model(x).argmax(1), [PerturbationLinf(0.1), PerturbationL2Box(0.1)])
    (first, every), (second, rest) = calls
    assert (first, second, every) == (
        "margin",
        "ce",
        80,
    ) and CertifySettings().attack == EVALUATION_ATTACKS
    assert 0 < 80 - rest <= len(result.adversarial)


def test_branch_and_bound_ends_by_its_splits_or_by_the_time_limit():
    """A number of splits finds the same on every machine.

    With a time limit, the time alone counts.
    """
    stage = stages.STAGES["BaB"]
    assert (
        stage.within(None).max_splits == stages.MAX_SPLITS and stage.within(3.0).max_splits is None
    )
    assert stage.within(None).max_lack == stages.MAX_LACK and stage.within(3.0).max_lack == math.inf
    assert stages.STAGES["IBP"].within(3.0) is stages.STAGES["IBP"]
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.rand(2, 4)
    seen = []

    class Recorded(stages.BranchStage):
        def within(self, time_limit):
            seen.append(time_limit)
            return super().within(time_limit)

    for limit in (None, 2.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(stages.STAGES, "BaB", Recorded("BaB"))
            settings = CertifySettings(["BaB"], attack=None, time_limit=limit)
            certify(model, x, model(x).argmax(1), [PerturbationLinf(0.01)], settings)
    assert seen == [None, 2.0]


def test_what_a_bound_lacks():
    """A clean margin of 3 and a bound of -1.

    A quarter of the way from the bound to the margin is missing.
    """
    model = nn.Linear(1, 3, bias=False)
    model.weight.data = torch.tensor([[4.0], [1.0], [0.0]])
    x, is_open = torch.ones(1, 1), torch.tensor([[[False, True, True]]])
    best = torch.tensor([[[math.inf, -1.0, -math.inf]]], dtype=torch.float64)
    pairs = stages.OpenPairs.where(x, torch.tensor([0]), SETS[:1], is_open, best=best)
    assert pairs.lack(model).tolist() == [0.25, 0.0]
    assert stages.OpenPairs.where(x, torch.tensor([0]), SETS[:1], is_open).lack(model).tolist() == [
        0.0,
        0.0,
    ]
    assert [part.best.tolist() for part in pairs.apart()] == [[-1.0, -math.inf]]


@pytest.mark.parametrize("max_lack, searched", [(0.0, False), (1.0, True)])
def test_branch_and_bound_leaves_out_what_is_hopeless(max_lack, searched, monkeypatch):
    torch.manual_seed(1)
    model, x = network(), inputs(20)
    y, seen = own_labels(model, x), []
    monkeypatch.setitem(stages.STAGES, "BaB", stages.BranchStage("BaB", max_lack=max_lack))
    original = BoundedModule.branch_and_bound
    monkeypatch.setattr(
        BoundedModule, "branch_and_bound", lambda *args: seen.append(1) or original(*args)
    )
    result = certify(
        model, x, y, [PerturbationLinf(0.05)], CertifySettings(["CROWN", "BaB"], attack=None)
    )
    assert result.is_status(UNKNOWN).any() or searched
    assert bool(seen) == searched
