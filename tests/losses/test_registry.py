"""Losses by name."""

import pytest

from lirpa_multinorm import Branch, MultiNormLoss, PerturbationL1Box, PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import LOSSES, build_loss, register_loss

LINF, L2 = PerturbationLinf(0.1), PerturbationL2Box(0.5)

# name -> (combination, (norm, region, ratio) per branch) by default
DEFAULTS = {
    "ibp": ("joint", [(float("inf"), "set", None), (2, "set", None)]),
    "sabr": ("joint", [(float("inf"), "box", 0.4)]),
    "cure_l2": ("joint", [(2, "box", 1e-5)]),
    "joint": ("joint", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
    "max": ("max", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
    "random": ("random", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
}


def described(loss):
    return [(one.perturbation.norm, one.region, None if one.region == "set" else one.ratio) for one in loss.branches]


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_papers(name):
    loss = build_loss(name, [LINF, L2])
    assert (loss.combine, described(loss)) == DEFAULTS[name]
    assert loss.weights == pytest.approx([1 / len(loss.branches)] * len(loss.branches))


def test_natural_training_is_none():
    assert build_loss("natural", [LINF, L2]) is None


def test_every_loss_is_covered_here():
    assert set(LOSSES) == {*DEFAULTS, "natural"}


def test_options_reach_the_branches():
    loss = build_loss("joint", [LINF, L2], ratio_inf=0.7, ratio_2=0.2, region_2="ball", weights=(0.25, 0.75))
    assert described(loss) == [(float("inf"), "box", 0.7), (2, "ball", 0.2)] and loss.weights == [0.25, 0.75]


@pytest.mark.parametrize("sets", [[L2, LINF], [PerturbationL1Box(1.0), L2, LINF]], ids=["swapped", "three"])
def test_single_norm_losses_find_their_set(sets):
    assert [one.perturbation for one in build_loss("sabr", sets).branches] == [LINF]
    assert [one.perturbation for one in build_loss("cure_l2", sets).branches] == [L2]


@pytest.mark.parametrize("name, sets, norm", [("sabr", [L2], "inf"), ("cure_l2", [LINF], "2")], ids=["sabr", "cure"])
def test_a_missing_norm_is_named(name, sets, norm):
    with pytest.raises(InvalidArgumentError, match=f"no set of norm {norm}, which the loss '{name}' needs"):
        build_loss(name, sets)


@pytest.mark.parametrize("typo, near", [("sabre", "sabr"), ("cure_l", "cure_l2"), ("jiont", "joint")])
def test_an_unknown_name_lists_the_nearest(typo, near):
    with pytest.raises(InvalidArgumentError, match=f"'{typo}' is unknown.*{near}"):
        build_loss(typo, [LINF, L2])


@pytest.mark.parametrize("name", ["zzz", None, 3], ids=str)
def test_a_name_unlike_any_lists_all(name):
    with pytest.raises(InvalidArgumentError) as caught:
        build_loss(name, [LINF])
    assert all(known in str(caught.value) for known in LOSSES)


@pytest.mark.parametrize("name, option", [("natural", "ratio_inf"), ("ibp", "ratio_inf"), ("sabr", "ratio_2"),
                                          ("cure_l2", "ratio_inf"), ("joint", "ratio"), ("max", "weights"),
                                          ("random", "weights")])
def test_an_unknown_option_is_named(name, option):
    with pytest.raises(InvalidArgumentError, match=f"loss '{name}': .*{option}"):
        build_loss(name, [LINF, L2], **{option: 0.5})


def test_a_bad_value_of_an_option_is_refused():
    with pytest.raises(InvalidArgumentError, match="ratio=2"):
        build_loss("joint", [LINF, L2], ratio_inf=2)


def test_no_sets_are_refused():
    with pytest.raises(InvalidArgumentError, match="perturbations is empty"):
        build_loss("max", [])


def test_a_loss_of_ones_own_and_a_name_taken():
    try:
        @register_loss("first_only")
        def first_only(perturbations, ratio=0.5):
            return MultiNormLoss([Branch(perturbations[0], "ball", ratio)])

        assert described(build_loss("first_only", [L2], ratio=0.25)) == [(2, "ball", 0.25)]
        with pytest.raises(InvalidArgumentError, match="'first_only' is already a loss"):
            register_loss("first_only")(first_only)
        assert LOSSES["first_only"] is first_only
    finally:
        LOSSES.pop("first_only", None)
