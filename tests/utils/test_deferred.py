"""Deferred checks: one look for all, and the errors of checks that are made at once."""

import pytest
import torch

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf, build_loss
from lirpa_multinorm.errors import InvalidArgumentError, NaNBoundError
from lirpa_multinorm.utils.deferred import (
    checked_together,
    deferred_checks,
    labels_checked,
    note_labels,
    read_deferred,
    require,
)
from tests.devices.cases import batch, network
from tests.devices.synchronisations import Synchronisations

YES, NO = torch.tensor(True), torch.tensor(False)


def refuse(text="refused"):
    def explain():
        raise ValueError(text)

    return explain


def test_a_requirement_is_read_at_once_outside_of_a_block():
    require(YES, refuse())
    with pytest.raises(ValueError, match="refused"):
        require(NO, refuse())


def test_requirements_of_a_block_are_read_by_one_look_at_its_end():
    reached = []
    with pytest.raises(ValueError, match="second"):
        with Synchronisations() as counting, deferred_checks():
            require(YES, refuse("first"))
            require(NO, refuse("second"))
            require(NO, refuse("third"))
            reached.append(True)
    assert reached and counting.total == 1


def test_an_inner_block_is_read_with_the_outer_one():
    with pytest.raises(ValueError), deferred_checks():
        checked_together(lambda: require(NO, refuse()))()
        inner_ended = True
    assert inner_ended


def test_values_are_read_with_the_requirements():
    with deferred_checks():
        require(YES, refuse())
        with Synchronisations() as counting:
            assert read_deferred(NO, YES) == [False, True]
        assert counting.total == 1
    assert read_deferred(YES) == [True] and read_deferred() == []


def test_a_closer_look_may_find_nothing():
    with deferred_checks():
        require(NO, lambda: None)


def test_what_was_refused_explains_what_failed_afterwards():
    with pytest.raises(ValueError, match="refused") as caught, deferred_checks():
        require(NO, refuse())
        raise KeyError("a consequence")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyError), deferred_checks():
        require(YES, refuse())
        raise KeyError("of its own")


def test_labels_are_known_inside_their_block_only():
    y = torch.tensor([0, 1])
    with deferred_checks():
        note_labels(y, 3)
        assert labels_checked(y, 3)
        assert not labels_checked(y, 2) and not labels_checked(y.clone(), 3)
    assert not labels_checked(y, 3)


@pytest.mark.parametrize(
    "spoil,error,text",
    [
        (lambda x, y: (x * float("nan"), y), InvalidArgumentError, "x contains NaN or infinite"),
        (lambda x, y: (x + 0.5, y), InvalidArgumentError, "x lies outside clip by up to"),
        (lambda x, y: (x, y + 7), InvalidArgumentError, "labels run from"),
    ],
    ids=["NaN", "outside", "labels"],
)
@pytest.mark.parametrize("loss", ["joint", "ibp", "mtl_ibp"])
def test_a_loss_refuses_bad_input_as_before(loss, spoil, error, text):
    device = torch.device("cpu")
    sets = [PerturbationLinf(0.1), PerturbationL2Box(0.2)]
    x, y = spoil(*batch(device))
    with pytest.raises(error, match=text):
        build_loss(loss, sets)(BoundedModule(network(device)), x, y)


def test_a_loss_finds_the_bounds_that_are_nan():
    device = torch.device("cpu")
    model, (x, y) = network(device), batch(device)
    bounded = BoundedModule(model)
    bounded(x)
    with torch.no_grad():
        model[-1].bias.fill_(float("nan"))
    with pytest.raises(NaNBoundError, match="NaN"):
        build_loss("ibp", [PerturbationLinf(0.1)])(bounded, x, y)
