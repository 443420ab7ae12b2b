"""Stacked regions: slices, boxes and concretisation by each slice's own set."""

import math

import pytest
import torch

from lirpa_multinorm import PerturbationL1Box, PerturbationL2Box, PerturbationLinf, host
from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.perturbations import PerturbationStack, Region, take_rows
from lirpa_multinorm.perturbations.rows import DenseRows

BALLS = [PerturbationLinf(0.1), PerturbationL2Box(0.4), PerturbationL1Box(0.9, clip=None)]


def regions(sizes=(2, 1, 3)):
    generator = torch.Generator().manual_seed(0)
    return [
        Region(torch.rand(size, 2, 3, 3, generator=generator), ball)
        for size, ball in zip(sizes, BALLS)
    ]


def test_slices_and_centres():
    stack = PerturbationStack(regions())
    assert [(index.start, index.stop) for index, _ in stack.slices()] == [(0, 2), (2, 3), (3, 6)]
    assert stack.centers().shape == (6, 2, 3, 3)
    for index, region in stack.slices():
        assert torch.equal(stack.centers()[index], region.center)


def test_box_is_each_sets_own():
    lower, upper = PerturbationStack(regions()).box()
    expected = [region.perturbation.enclosing_box(region.center) for region in regions()]
    assert torch.equal(lower, torch.cat([ends[0] for ends in expected]))
    assert torch.equal(upper, torch.cat([ends[1] for ends in expected]))


@pytest.mark.parametrize(
    "balls,is_box",
    [(BALLS, False), (BALLS[:1], True), (BALLS[1:2], False)],
    ids=["mixed", "linf", "l2"],
)
def test_is_box(balls, is_box):
    x = torch.rand(1, 2)
    assert PerturbationStack([Region(x, ball) for ball in balls]).is_box() is is_box


@pytest.mark.parametrize("sign", [-1, 1], ids=["lower", "upper"])
def test_concretize(sign):
    stack = PerturbationStack(regions())
    A = torch.randn(6, 4, 2, 3, 3)
    bound = stack.concretize(stack.centers(), A, sign=sign)
    for index, region in stack.slices():
        expected = region.perturbation.extreme(DenseRows(A[index].flatten(2)), region.center, sign)
        assert torch.allclose(bound[index], expected)


def test_concretize_of_the_identity_is_the_box():
    stack = PerturbationStack(regions())
    lower, upper = stack.box()
    eye = host.eyeC((6, 18, 18), "cpu")
    assert torch.allclose(
        stack.concretize(stack.centers(), eye, sign=-1), lower.flatten(1), atol=1e-6
    )
    assert torch.allclose(
        stack.concretize(stack.centers(), eye, sign=1), upper.flatten(1), atol=1e-6
    )


def test_concretize_of_nothing_is_nothing():
    stack = PerturbationStack(regions())
    assert stack.concretize(stack.centers(), None) is None


def test_channels_last_centres():
    x = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    stack = PerturbationStack([Region(x, PerturbationLinf(0.1))])
    assert stack.centers().is_contiguous()
    assert torch.equal(stack.centers(), x)


def test_init_gives_the_host_the_boxes():
    stack = PerturbationStack(regions())
    result = stack.init(stack.centers())
    lower, upper = stack.box()
    assert torch.equal(result[0].lower, lower) and torch.equal(result[0].upper, upper)
    assert stack.norm == math.inf  # what the host's operators look at


def test_forward_mode_is_refused():
    stack = PerturbationStack(regions())
    with pytest.raises(InvalidArgumentError, match="^method.*CROWN"):
        stack.init(stack.centers(), forward=True)


def test_repr_lists_the_sets():
    text = repr(PerturbationStack(regions()))
    assert all(repr(ball) in text for ball in BALLS)


def test_taken_rows_keep_their_order_or_are_refused():
    whole, index = PerturbationStack(regions()).centers(), torch.tensor([0, 0, 2, 4, 5])
    result = take_rows(regions(), index)
    assert torch.equal(PerturbationStack(result).centers(), whole[index])
    assert [repr(item.perturbation) for item in result] == [repr(item) for item in BALLS]
    with pytest.raises(InvalidArgumentError, match="index must rise"):
        take_rows(regions(), torch.tensor([4, 0]))
    backwards = torch.tensor([1, 0])
    assert torch.equal(take_rows(regions()[:1], backwards)[0].center, whole[backwards])
