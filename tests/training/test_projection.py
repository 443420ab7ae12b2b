"""Gradient projection by hand and against loops over plain Python numbers."""

import math

import pytest
import torch

from lirpa_multinorm.errors import InvalidArgumentError
from lirpa_multinorm.training.projection import Projection, merge_epochs, project_update

SHAPES = {
    "scalar": (),
    "one": (1,),
    "bias": (5,),
    "matrix": (4, 3),
    "kernel": (4, 2, 3, 3),
    "empty": (0, 3),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def projected(natural, certified):
    """max(0, cos) g_n over lists of numbers."""
    inner = math.fsum(n * c for n, c in zip(natural, certified))
    length = math.sqrt(math.fsum(n * n for n in natural)) * math.sqrt(
        math.fsum(c * c for c in certified)
    )
    cosine = max(0.0, inner / length) if length > 0 else 0.0
    return [cosine * n for n in natural]


def merged(start, natural, certified, beta):
    """theta_0 + beta GP(g_n, g_c) + (1 - beta) g_c over lists of numbers."""
    g_n, g_c = (
        [end - begin for end, begin in zip(values, start)] for values in (natural, certified)
    )
    return [t + beta * p + (1 - beta) * c for t, p, c in zip(start, projected(g_n, g_c), g_c)]


def states(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


def merge(start, natural, certified, beta):
    return merge_epochs({"w": start}, {"w": natural}, {"w": certified}, beta)["w"]


# name -> (g_n, g_c, their projection)
BY_HAND = {
    "same": ([3.0, 4.0], [3.0, 4.0], [3.0, 4.0]),
    "half_as_long": ([3.0, 4.0], [6.0, 8.0], [3.0, 4.0]),
    "sixty_degrees": ([2.0, 0.0], [1.0, math.sqrt(3)], [1.0, 0.0]),
    "cosine_0.6": ([3.0, 4.0], [1.0, 0.0], [1.8, 2.4]),
    "orthogonal": ([0.0, 5.0], [2.0, 0.0], [0.0, 0.0]),
    "opposite": ([1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]),
    "obtuse": ([-3.0, 4.0], [1.0, 0.0], [0.0, 0.0]),
    "no_natural": ([0.0, 0.0], [1.0, 2.0], [0.0, 0.0]),
    "no_certified": ([1.0, 2.0], [0.0, 0.0], [0.0, 0.0]),
    "neither": ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    "scalars_agree": ([2.0], [0.1], [2.0]),
    "scalars_disagree": ([2.0], [-0.1], [0.0]),
}


@pytest.mark.parametrize("natural, certified, expected", BY_HAND.values(), ids=BY_HAND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_by_hand(natural, certified, expected, dtype):
    result = project_update(*(torch.tensor(item, dtype=dtype) for item in (natural, certified)))
    assert result.tolist() == pytest.approx(
        expected, rel=1e-6 if dtype == torch.float32 else 1e-14, abs=1e-14
    )
    assert result.dtype == dtype


@shapes
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_merge_is_the_formula(shape, seed, beta):
    start, natural, certified = states(shape, seed)
    result = merge(start, natural, certified, beta)
    expected = merged(*(item.flatten().tolist() for item in (start, natural, certified)), beta)
    assert result.shape == shape and result.dtype == torch.float64
    assert result.flatten().tolist() == pytest.approx(expected, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize(
    "beta, expected", [(0, [3.0, 1.0]), (0.5, [2.9, 2.2]), (0.8, [2.84, 2.92]), (1, [2.8, 3.4])]
)
def test_merge_by_hand(beta, expected):
    """g_n = (3, 4) and g_c = (2, 0) have the cosine 0.6, so that GP = (1.8, 2.4)."""
    start = torch.ones(2, dtype=torch.float64)
    natural, certified = start + torch.tensor([3.0, 4.0]), start + torch.tensor([2.0, 0.0])
    assert merge(start, natural, certified, beta).tolist() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_0_is_the_certified_epoch_exactly(dtype):
    start, natural, certified = states((50, 50), dtype=dtype)
    assert torch.equal(merge(start, natural, certified, 0.0), certified)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_beta_1_is_the_projected_natural_epoch_exactly(dtype):
    start, natural, certified = states((50, 50), dtype=dtype)
    expected = start + project_update(natural - start, certified - start)
    assert torch.equal(merge(start, natural, certified, 1.0), expected)


@shapes
@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_epochs_that_agree_are_kept(shape, beta):
    start, _, certified = states(shape)
    assert torch.allclose(
        merge(start, certified.clone(), certified, beta), certified, rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("still", ["natural", "certified", "both"])
def test_a_tensor_that_does_not_move_gives_no_nan(beta, still):
    start, natural, certified = states((3, 2))
    natural = start.clone() if still in ("natural", "both") else natural
    certified = start.clone() if still in ("certified", "both") else certified
    expected = start + (1 - beta) * (certified - start)
    assert torch.allclose(merge(start, natural, certified, beta), expected, rtol=1e-14, atol=1e-15)


def test_tensors_are_projected_one_by_one():
    """One that disagrees does not drag the others along."""
    start = {"a": torch.zeros(2), "b": torch.zeros(2)}
    natural = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([100.0, 0.0])}
    certified = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([-100.0, 0.0])}
    result = merge_epochs(start, natural, certified, 0.5)
    assert result["a"].tolist() == [1.0, 0.0] and result["b"].tolist() == [-50.0, 0.0]
    assert list(result) == ["a", "b"]


def test_the_arguments_are_not_changed():
    arguments = states((4, 3))
    copies = [item.clone() for item in arguments]
    result = merge(*arguments, 0.7)
    result += 1
    assert all(torch.equal(item, copy) for item, copy in zip(arguments, copies))


def test_small_updates_in_float32_keep_their_direction():
    """Squares of such numbers are 0 in float32."""
    natural, certified = torch.tensor([3e-25, 4e-25]), torch.tensor([1e-25, 0.0])
    assert (project_update(natural, certified) / 1e-25).tolist() == pytest.approx(
        [1.8, 2.4], rel=1e-5
    )
    large = torch.tensor([3e25, 4e25]), torch.tensor([1e25, 0.0])
    assert (project_update(*large) / 1e25).tolist() == pytest.approx([1.8, 2.4], rel=1e-5)


def test_a_projection_is_never_longer_than_the_natural_update():
    for seed in range(30):
        start, natural, certified = states((6,), seed)
        result = project_update(natural - start, certified - start)
        assert result.norm() <= (natural - start).norm() * (1 + 1e-12)
        assert result @ (certified - start) >= 0


BAD = {
    "below": ({"beta": -0.1}, "beta=-0.1"),
    "above": ({"beta": 1.1}, "beta=1.1"),
    "nan": ({"beta": float("nan")}, "beta=nan"),
    "infinite": ({"beta": float("inf")}, "beta=inf"),
    "statistics": ({"statistics": "natural"}, "statistics='natural'.*certified or mixed"),
    "optimizer": ({"optimizer": "sgd"}, "optimizer='sgd'.*own or copy"),
}


@pytest.mark.parametrize("arguments, match", BAD.values(), ids=BAD)
def test_unusable_settings_are_refused(arguments, match):
    with pytest.raises(InvalidArgumentError, match=match):
        Projection(**arguments)


@pytest.mark.parametrize("beta", [0, 0.5, 1])
def test_the_ends_of_beta_are_allowed(beta):
    assert Projection(beta=beta).beta == beta
