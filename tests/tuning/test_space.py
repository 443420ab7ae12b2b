"""Search spaces: flags, ranges, defaults of losses, and what cannot be searched."""

import pytest

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.losses import LOSSES, accepts
from lirpa_multinorm.training import TrainConfig
from lirpa_multinorm.tuning import Dimension, default_space, front_of, parse_dimension, space_of
from lirpa_multinorm.tuning.space import with_values

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.4)]


def flags(space):
    return [dimension.flag for dimension in space]


def refused(word, loss="joint", sets=2):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_dimension(word, loss, sets)
    return str(caught.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_a_space_of_its_own_options(loss):
    config = TrainConfig(loss)
    for dimension in default_space(config, SETS):
        option = dimension.path.partition("train.loss_options.")[2].partition(".")[0]
        assert not option or accepts(loss, option)
        for value in dimension.ends():
            assert TrainConfig.from_dict(with_values(config.to_dict(), {dimension.path: value}))


def test_the_space_follows_the_regions_of_the_terms():
    options = {"region_2": "lipschitz", "ratio_inf": 0.3}
    result = flags(default_space(TrainConfig("joint", options), SETS))
    assert "ratio-inf" in result and "ratio-2" not in result and "weights.1" in result
    assert flags(default_space(TrainConfig("natural"), SETS)) == ["learning-rate", "l1"]
    assert {"eta"} <= set(flags(default_space(TrainConfig("cure"), SETS)))
    assert {"alpha"} <= set(flags(default_space(TrainConfig("mtl_ibp"), SETS)))


def test_a_flag_that_has_a_value_is_not_searched():
    config = TrainConfig("joint")
    fixed = ["train.learning_rate", "train.loss_options.weights"]
    result = flags(space_of([], config, SETS, fixed))
    assert "learning-rate" not in result and "weights.1" not in result and "ratio-inf" in result
    with pytest.raises(InvalidArgumentError, match="contradict each other"):
        space_of(["learning-rate=1e-4:1e-3"], config, SETS, fixed)


def test_words_are_the_whole_space_unless_default_stands_beside_them():
    config = TrainConfig("joint")
    assert flags(space_of(["ratio-inf=0.1:0.2"], config, SETS)) == ["ratio-inf"]
    both = space_of(["default", "ratio-inf=0.1:0.2", "region-2=box,ball"], config, SETS)
    assert {"region-2", "kappa-end"} <= set(flags(both))
    (ratio,) = [dimension for dimension in both if dimension.flag == "ratio-inf"]
    assert (ratio.low, ratio.high, ratio.log) == (0.1, 0.2, False)


@pytest.mark.parametrize(
    "word, expected",
    [
        ("eps-factor-2=1/2:1.5", (0.5, 1.5, False, ())),
        ("--l1=1e-7:1e-5:log", (1e-7, 1e-5, True, ())),
        ("batch-size=16:64", (16, 64, False, ())),
        ("precise-bn=yes,no", (None, None, False, (True, False))),
        ("anneal-epochs=30%,50%", (None, None, False, ("30%", "50%"))),
        ("attack-steps=3,8", (None, None, False, (3, 8))),
    ],
)
def test_ranges_and_choices(word, expected):
    (result,) = parse_dimension(word, "joint", 2)
    assert (result.low, result.high, result.log, result.choices) == expected


@pytest.mark.parametrize(
    "word, words",
    [
        ("ratio-inff=0.1:1", "train has no flag --ratio-inff; nearest: ratio-inf"),
        ("eta=0.1:1", "the loss 'joint' has no such option"),
        ("epochs=1:2", "the same for all trials"),
        ("eps-inf=0.1:0.2", "the same for all trials"),
        ("milestones=1:2", "takes a list"),
        ("ratio-inf", "give a range"),
        ("ratio-inf=1:0.1", "must go up"),
        ("ratio-inf=0:1:log", "from above 0"),
        ("ratio-inf=a:b", "is no range"),
        ("ratio-inf=0.1:1:lin", "is no range"),
        ("ratio-inf=0.1", "two or more different values"),
        ("region-2=box,bal", "'bal' is unknown"),
        ("precise-bn=1,0", "use yes, no"),
    ],
)
def test_what_cannot_be_searched(word, words):
    assert words in refused(word)


def test_weights_have_the_sum_one():
    assert "nothing to weigh" in refused("weights=0.1:0.9", sets=1)
    space = parse_dimension("weights=0.1:0.9", "joint", 3)
    values = {dimension.path: 0.25 for dimension in space}
    weights = with_values({}, values)["loss_options"]["weights"]
    assert flags(space) == ["weights.1", "weights.2"] and sum(weights) == pytest.approx(1)


def test_values_lead_to_nested_settings_and_leave_the_old_alone():
    train = TrainConfig("joint", {"ratio_inf": 0.5}).to_dict()
    values = {"train.schedule.kappa_end": 0.25, "train.loss_options.ratio_inf": 0.1}
    config = TrainConfig.from_dict(with_values(train, values))
    assert config.schedule.kappa_end == 0.25 and config.loss_options["ratio_inf"] == 0.1
    assert train["loss_options"]["ratio_inf"] == 0.5 and train["schedule"]["kappa_end"] == 0.0


def test_dimensions_know_their_values():
    ranged, chosen = Dimension("a", "a", 0.1, 0.5), Dimension("b", "b", choices=("x", "y"))
    assert ranged.has(0.1) and not ranged.has(0.6) and not ranged.has(None)
    assert chosen.has("x") and not chosen.has("z") and chosen.described() == "x, y"


def test_equal_points_are_on_the_front_together():
    points = [{"trial": n, "clean": 90, "certified union": 50} for n in range(2)]
    worse = {"trial": 2, "clean": 90, "certified union": 49}
    assert front_of([*points, worse]) == points and front_of([]) == []
