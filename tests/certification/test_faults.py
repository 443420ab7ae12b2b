"""What stages may do wrong, and what time limits leave: always said, never certified."""

import math

import pytest
import torch
from torch import nn

from lirpa_multinorm import CertifySettings, PerturbationL2Box, PerturbationLinf, certify
from lirpa_multinorm.certification import (
    CERTIFIED,
    ERROR,
    NOT_RUN,
    TIMEOUT,
    UNKNOWN,
    Stage,
    cascade,
    stages,
)
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.15)]


def linear():
    return nn.Sequential(nn.Linear(6, 3))


def inputs(count):
    return torch.rand(count, 6)


class Scripted(Stage):
    """A stage that returns what a function of the open pairs says."""

    def __init__(self, name, function):
        super().__init__(name)
        self.function, self.calls = function, []

    def bound(self, bounded, pairs, deadline):
        self.calls.append((pairs, deadline))
        return self.function(pairs)


@pytest.fixture
def scripted(monkeypatch):
    """Add a stage of one's own under the name "own"."""

    def add(function):
        stage = Scripted("own", function)
        monkeypatch.setitem(stages.STAGES, "own", stage)
        return stage

    return add


def test_a_stage_of_ones_own_and_one_bad_class(scripted):
    """All margins must be positive: NaN and zero are not."""
    model, x = linear(), inputs(3)
    y = model(x).argmax(1)
    values = torch.tensor([1.0, 2.0, 1.0, math.nan, 0.0, 1.0])
    scripted(lambda pairs: values)
    result = certify(model, x, y, SETS[:1], CertifySettings(["own"], None))
    assert result.status == [[CERTIFIED, UNKNOWN, UNKNOWN]] and result.method == [["own", "", ""]]
    assert result.margin.tolist() == [[1.0, -math.inf, 0.0]]


def test_the_better_bound_of_each_class_is_kept(scripted):
    """The first stage proves one class and the second the other: together they certify."""
    model, x = linear(), inputs(1)
    rounds = iter([torch.tensor([-3.0, 2.0]), torch.tensor([-4.0]), torch.tensor([0.5])])
    stage = scripted(lambda pairs: next(rounds))
    y = model(x).argmax(1)
    result = certify(model, x, y, SETS[:1], CertifySettings(["own", "own", "own"], None))
    assert [len(pairs) for pairs, _ in stage.calls] == [2, 1, 1]
    assert result.status == [[CERTIFIED]] and result.margin.tolist() == [[0.5]]


def test_a_method_that_does_not_support_the_model_is_left_out_with_one_warning(scripted, recwarn):
    def unsupported(pairs):
        raise UnsupportedModelError("no such operator")

    model, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), inputs(20)
    y, stage = torch.arange(20) % 3, scripted(unsupported)
    sets = [PerturbationLinf(0.2), PerturbationL2Box(0.3)]
    result = certify(
        model, x, y, sets, CertifySettings(["IBP", "own", "CROWN"], None, batch_size=5)
    )
    assert len(stage.calls) == 1
    assert [str(item.message) for item in recwarn if "own" in str(item.message)] == [
        "own is left out, because it does not support this model: no such operator"
    ]
    expected = certify(model, x, y, sets, CertifySettings(["IBP", "CROWN"], None, batch_size=5))
    assert result.status == expected.status and result.method == expected.method


def test_only_the_image_at_fault_is_an_error(scripted):
    """The rest of its batch is certified, and what was known of it before stays."""

    def picky(pairs):
        if (pairs.x[pairs.image] == x[3]).all(1).any():
            raise NaNBoundError("the bounds contain NaN")
        return torch.ones(len(pairs))

    model, x = linear(), inputs(8)
    y = model(x).argmax(1)
    scripted(picky)
    with pytest.warns(
        UserWarning,
        match="images with the status 'error': 1; image 3 because of NaNBoundError: the b",
    ):
        result = certify(model, x, y, SETS[:2], CertifySettings(["own"], None, batch_size=6))
    assert result.status == [[ERROR if image == 3 else CERTIFIED for image in range(8)]] * 2
    assert (
        result.errors == {3: "NaNBoundError: the bounds contain NaN"}
        and result.prediction[3] == y[3]
    )
    summary = result.summary()
    assert (
        summary["certified_union"] == 7 / 8
        and summary["clean"] == 1
        and summary["counts"][0][ERROR] == 1
    )


def test_errors_of_the_caller_are_raised(scripted):
    def wrong(pairs):
        raise InvalidArgumentError("x: wrong")

    model, x = linear(), inputs(4)
    scripted(wrong)
    with pytest.raises(InvalidArgumentError, match="x: wrong"):
        certify(model, x, model(x).argmax(1), SETS[:1], CertifySettings(["own"], None))


def test_a_model_of_one_output_is_refused():
    with pytest.raises(InvalidArgumentError, match="1 output"):
        certify(nn.Sequential(nn.Linear(6, 1)), inputs(2), torch.zeros(2, dtype=torch.long), SETS)


# --- time -----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that only stages move."""
    now = [0.0]
    monkeypatch.setattr(cascade, "clock", lambda: now[0])
    return now


def test_a_stages_time_is_shared_by_what_it_bounded(scripted, clock):
    """Image 0 has both classes open, image 1 one: two thirds and one third of 3 seconds."""
    model, x = linear(), inputs(2)
    rounds = iter([torch.tensor([-1.0, -1.0, -1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])])

    def slow(pairs):
        clock[0] += 3
        return next(rounds)

    scripted(slow)
    result = certify(model, x, model(x).argmax(1), SETS[:1], CertifySettings(["own", "own"], None))
    assert result.seconds.tolist() == [1.5 + 2, 1.5 + 1]


def test_images_over_their_limit_time_out_and_the_others_go_on(scripted, clock):
    model, x = linear(), inputs(2)
    rounds = iter(
        [
            torch.tensor([-1.0, -1.0, -1.0, 1.0]),
            torch.tensor([-1.0, -1.0, -1.0]),
            torch.tensor([-1.0]),
        ]
    )

    def slow(pairs):
        clock[0] += 3
        return next(rounds)

    stage = scripted(slow)
    result = certify(
        model, x, model(x).argmax(1), SETS[:1], CertifySettings(["own"] * 3, None, time_limit=3)
    )
    assert [pairs.image.tolist() for pairs, _ in stage.calls] == [[0, 0, 1, 1], [0, 0, 1], [1]]
    assert result.status == [
        [TIMEOUT, UNKNOWN]
    ]  # 1.5 + 2 and 1.5 + 1 + 3 seconds: methods once begun are ended
    assert [deadline for _, deadline in stage.calls] == [6, 3 + 3, 6 + 0.5]
    assert result.summary()["counts"][0][TIMEOUT] == 1


def test_the_total_limit_leaves_the_rest_not_run(scripted, clock):
    model, x = linear(), inputs(12)

    def slow(pairs):
        clock[0] += 1
        return torch.full((len(pairs),), -1.0)

    stage = scripted(slow)
    settings = CertifySettings(["own", "own"], None, batch_size=3, total_time_limit=3)
    result = certify(model, x, model(x).argmax(1), SETS[:1], settings)
    assert len(stage.calls) == 3 and {deadline for _, deadline in stage.calls} == {3}
    assert result.status == [[UNKNOWN] * 3 + [NOT_RUN] * 9]  # the second batch has missed a method
    summary = result.summary()
    assert (
        summary["not_run"] == list(range(3, 12))
        and summary["clean"] == 6 / 12
        and len(result) == summary["n"] == 12
    )


@pytest.mark.parametrize("name", ["time_limit", "total_time_limit"])
@pytest.mark.parametrize("value", [0, -1, -0.5, math.nan, True, "60"], ids=str)
def test_unusable_limits_are_refused(name, value):
    with pytest.raises(
        InvalidArgumentError,
        match=f"{name}={value!r} must be a positive number of seconds, or None",
    ):
        CertifySettings(**{name: value})


def test_unusable_attacks_are_refused():
    with pytest.raises(InvalidArgumentError, match="attack: 'pgd' is no AttackSettings"):
        CertifySettings(attack=["pgd"])
