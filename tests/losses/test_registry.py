"""Losses by name."""

import pytest

from lirpa_multinorm import (
    LossTerm,
    MultiNormLoss,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
)
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import (
    LOSSES,
    TRAINING_ATTACK,
    Taps,
    branch_options,
    build_loss,
    register_loss,
)

LINF, L2, L1 = PerturbationLinf(0.1), PerturbationL2Box(0.5), PerturbationL1Box(1.0)

# name -> (combination, (norm, region, ratio) per term) by default
DEFAULTS = {
    "ibp": ("joint", [(float("inf"), "set", None), (2, "set", None)]),
    "sabr": ("joint", [(float("inf"), "box", 0.4)]),
    "cure_l2": ("joint", [(2, "box", 1e-5)]),
    "joint": ("joint", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
    "max": ("max", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
    "random": ("random", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
    "cure": ("max", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
    "mtl_ibp": ("max", [(float("inf"), "set", None), (2, "set", None)]),
    "cc_ibp": ("max", [(float("inf"), "set", None), (2, "set", None)]),
    "exp_ibp": ("max", [(float("inf"), "set", None), (2, "set", None)]),
    "crown_ibp": ("joint", [(float("inf"), "set", None), (2, "set", None)]),
    "taps": ("joint", [(float("inf"), "set", None), (2, "set", None)]),
    "staps": ("joint", [(float("inf"), "box", 0.4), (2, "box", 1e-5)]),
}


def described(loss):
    return [
        (item.perturbation.norm, item.region, None if item.region == "set" else item.ratio)
        for item in loss.terms
    ]


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_papers(name):
    loss = build_loss(name, [LINF, L2])
    assert (loss.combine, described(loss)) == DEFAULTS[name]
    assert loss.weights == pytest.approx([1 / len(loss.terms)] * len(loss.terms))


def test_cure_aligns_with_the_papers_settings():
    loss = build_loss("cure", [LINF, L2])
    assert (loss.alignment.eta, loss.alignment.target, loss.alignment.detach) == (2.0, 2.0, False)
    assert loss.aligned == [(1, 0)]
    assert all(
        build_loss(name, [LINF, L2]).alignment is None for name in ("max", "joint", "mtl_ibp")
    )


@pytest.mark.parametrize("name, mix", [("mtl_ibp", "mtl"), ("cc_ibp", "cc"), ("exp_ibp", "exp")])
def test_mixes_by_name(name, mix):
    loss = build_loss(
        name,
        [LINF, L2],
        alpha=0.2,
        attack_scale=1.5,
        alpha_2=0.3,
        combine="joint",
        weights=(0.1, 0.9),
    )
    assert [(item.mix, item.alpha, item.attack_scale) for item in loss.terms] == [
        (mix, 0.2, 1.5),
        (mix, 0.3, 1.5),
    ]
    assert (loss.combine, loss.weights) == ("joint", [0.1, 0.9])
    assert [item.mix for item in build_loss(name, [LINF, L2], mix_2=None).terms] == [mix, None]


@pytest.mark.parametrize(
    "field, value",
    [
        ("region", "ball"),
        ("ratio", 0.3),
        ("ratio_start", 0.9),
        ("shrink", 0.2),
        ("mix", "cc"),
        ("alpha", 0.1),
        ("attack_scale", 2.0),
        ("eps_factor", 1.5),
        ("bounding", "TAPS"),
        ("crown_share", 0.2),
        ("crown_share_start", 0.5),
        ("taps", Taps(layers=2)),
    ],
)
@pytest.mark.parametrize("norm, number", [("inf", 0), ("2", 1), ("1", 2)])
def test_every_field_of_every_norm_has_an_option(field, value, norm, number):
    changed = build_loss("joint", [LINF, L2, L1], **{f"{field}_{norm}": value}).terms
    plain = build_loss("joint", [LINF, L2, L1]).terms
    assert getattr(changed[number], field) == value
    assert [i for i in range(3) if changed[i] != plain[i]] == [number]
    assert f"{field}_{norm}" in branch_options()


def test_settings_of_the_attack():
    attack = build_loss(
        "cure_l2", [L2], attack={"steps": 3, "step_size": {"inf": 0.1, "2": 0.3}}
    ).attack
    assert (attack.steps, attack.step_length(2), attack.step_length(float("inf"))) == (3, 0.3, 0.1)
    assert (
        attack.decays == TRAINING_ATTACK.decays
        and build_loss("max", [LINF, L2]).attack == TRAINING_ATTACK
    )
    with pytest.raises(InvalidArgumentError, match="stepz"):
        build_loss("max", [LINF, L2], attack={"stepz": 3})


def test_natural_training_is_none():
    assert build_loss("natural", [LINF, L2]) is None


def test_every_loss_is_covered_here():
    assert set(LOSSES) == {*DEFAULTS, "linf_dist", "natural"}


def test_options_reach_the_branches():
    loss = build_loss(
        "joint", [LINF, L2], ratio_inf=0.7, ratio_2=0.2, region_2="ball", weights=(0.25, 0.75)
    )
    assert described(loss) == [(float("inf"), "box", 0.7), (2, "ball", 0.2)] and loss.weights == [
        0.25,
        0.75,
    ]


@pytest.mark.parametrize(
    "sets", [[L2, LINF], [PerturbationL1Box(1.0), L2, LINF]], ids=["swapped", "three"]
)
def test_single_norm_losses_find_their_set(sets):
    assert [item.perturbation for item in build_loss("sabr", sets).terms] == [LINF]
    assert [item.perturbation for item in build_loss("cure_l2", sets).terms] == [L2]


@pytest.mark.parametrize(
    "name, sets, norm", [("sabr", [L2], "inf"), ("cure_l2", [LINF], "2")], ids=["sabr", "cure"]
)
def test_a_missing_norm_is_named(name, sets, norm):
    with pytest.raises(
        InvalidArgumentError, match=f"no set of norm {norm}, which the loss '{name}' needs"
    ):
        build_loss(name, sets)


@pytest.mark.parametrize(
    "typo, near", [("sabre", "sabr"), ("cure_l", "cure_l2"), ("jiont", "joint")]
)
def test_an_unknown_name_lists_the_nearest(typo, near):
    with pytest.raises(InvalidArgumentError, match=f"'{typo}' is unknown.*{near}"):
        build_loss(typo, [LINF, L2])


@pytest.mark.parametrize("name", ["zzz", None, 3], ids=str)
def test_a_name_unlike_any_lists_all(name):
    with pytest.raises(InvalidArgumentError) as caught:
        build_loss(name, [LINF])
    assert all(known in str(caught.value) for known in LOSSES)


@pytest.mark.parametrize(
    "name, option",
    [
        ("natural", "ratio_inf"),
        ("ibp", "alpha"),
        ("sabr", "ratio_2"),
        ("cure_l2", "ratio_inf"),
        ("joint", "ratio"),
        ("max", "weights"),
        ("random", "weights"),
        ("cure", "ratio_1"),
        ("max", "eta"),
        ("joint", "perturbation_2"),
        ("mtl_ibp", "alpha_3"),
    ],
)
def test_an_unknown_option_is_named(name, option):
    with pytest.raises(InvalidArgumentError, match=f"loss '{name}': .*{option}"):
        build_loss(name, [LINF, L2], **{option: 0.5})


@pytest.mark.parametrize(
    "typo, near", [("ratio_imf", "ratio_inf"), ("regoin_2", "region_2"), ("shrink_i", "shrink_inf")]
)
def test_an_unknown_option_lists_the_nearest(typo, near):
    with pytest.raises(InvalidArgumentError, match=f"{typo}=0.5 is unknown; nearest: .*{near}"):
        build_loss("joint", [LINF, L2], **{typo: 0.5})


@pytest.mark.parametrize(
    "name, option", [("sabr", "ratio_2"), ("max", "shrink_1"), ("cure_l2", "mix_inf")]
)
def test_an_option_of_a_norm_that_the_loss_lacks(name, option):
    with pytest.raises(
        InvalidArgumentError, match=f"options {option} name a norm of which this loss has no set"
    ):
        build_loss(name, [LINF, L2], **{option: 0.5})


def test_a_bad_value_of_an_option_is_refused():
    with pytest.raises(InvalidArgumentError, match="ratio=2"):
        build_loss("joint", [LINF, L2], ratio_inf=2)


BAD = {
    "eta": ({"eta": -0.1}, "eta=-0.1"),
    "eta_nan": ({"eta": float("nan")}, "eta=nan"),
    "eta_infinite": ({"eta": float("inf")}, "eta=inf"),
    "eta_word": ({"eta": "two"}, "loss 'cure'"),
    "target": ({"target": 1}, "target=1.0 is not the norm of any set"),
    "target_word": ({"target": "l2"}, "target='l2' must be 1, 2, 'inf' or 'both'"),
    "target_none": ({"target": None}, "target=None"),
    "combine": ({"combine": "random"}, "combine='random'"),
    "regularized": ({"regularized": 2}, "regularized=2"),
}


@pytest.mark.parametrize("options, match", BAD.values(), ids=BAD)
def test_bad_settings_of_cure_are_refused(options, match):
    with pytest.raises(InvalidArgumentError, match=match):
        build_loss("cure", [LINF, L2], **options)


def test_cure_needs_two_sets():
    with pytest.raises(InvalidArgumentError, match="1 set; bound alignment .* needs two"):
        build_loss("cure", [L2])


def test_no_sets_are_refused():
    with pytest.raises(InvalidArgumentError, match="perturbations is empty"):
        build_loss("max", [])


def test_a_loss_of_ones_own_and_a_name_taken():
    try:

        @register_loss("first_only")
        def first_only(perturbations, ratio=0.5):
            return MultiNormLoss([LossTerm(perturbations[0], "ball", ratio)])

        assert described(build_loss("first_only", [L2], ratio=0.25)) == [(2, "ball", 0.25)]
        with pytest.raises(InvalidArgumentError, match="'first_only' is already a loss"):
            register_loss("first_only")(first_only)
        assert LOSSES["first_only"] is first_only
    finally:
        LOSSES.pop("first_only", None)
