"""Random networks of two and three inputs against a dense grid of the set.

Nothing broken, what is clear is proved.
"""

import copy
import time

import pytest
import torch

from lirpa_multinorm import BoundedModule
from lirpa_multinorm.perturbations import Region
from tests.verifier.grid_networks import grid, random_case

METHODS = [
    "IBP",
    "CROWN-IBP",
    "CROWN",
    "CROWN-Optimized",
    "Lipschitz",
    "Sparse-CROWN",
    "SDP-CROWN",
    "SDP-CROWN-Optimized",
]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the output's size
CLEAR = 0.01  # of the output's range: a minimum that far above zero must be proved
SECONDS = 2.0  # of this process's time
FEW, ALL = (1, 3, 8), range(500)  # the few: every norm, with and without range, both types


@torch.no_grad()
def values_on_grid(model, point, ptb):
    """The outputs on the grid, (N, K), float64.

    A second grid around the lowest points refines them.
    """
    exact = copy.deepcopy(model).double()
    points = grid(point, ptb, point.shape[1])
    values = exact(points)
    spacing = 2 * ptb.eps / (300 if point.shape[1] == 2 else 60)
    for v in (torch.eye(2, dtype=torch.float64)).repeat(2, 1) * torch.tensor(
        [[1.0], [1], [-1], [-1]]
    ).double():
        near = points[(values[: len(points)] @ v).argsort()[:20]]
        around = (
            near.unsqueeze(1) + spacing * (2 * torch.rand(1, 400, point.shape[1]).double() - 1)
        ).flatten(0, 1)
        offset = around - point.double()
        length = torch.linalg.vector_norm(offset, float(ptb.norm), dim=1, keepdim=True)
        around = point.double() + offset * (ptb.eps / length.clamp(min=1e-300)).clamp(max=1)
        values = torch.cat([values, exact(around if ptb.clip is None else around.clamp(*ptb.clip))])
    return values


def excess(bounds, values, dtype):
    """How far values pass the bounds beyond rounding, in units of the output's size."""
    lower, upper = (end.detach().double().flatten() for end in bounds)
    scale = 1 + values.abs().max()
    outside = torch.maximum(lower - values.amin(0), values.amax(0) - upper).max() / scale
    return float(outside) if torch.isfinite(outside) else float("inf")


def failures(seed, timed):
    """What is broken or not proved on the network of a seed; within two seconds each, if timed."""
    model, point, ptb = random_case(seed)
    values = values_on_grid(model, point, ptb)
    bounded = BoundedModule(
        model, perturbations=[ptb], bound_opts={"optimize_bound_args": {"iteration": 10}}
    )
    wrong = []
    for method in METHODS:
        outside = excess(bounded.compute_bounds(point, method=method), values, point.dtype)
        if not outside <= TOLERANCE[point.dtype]:
            wrong.append(f"seed {seed}: {method} passed by {outside:.3g}")
    return wrong + unproved(
        seed, timed, BoundedModule(model, perturbations=[ptb]), point, ptb, values
    )


def unproved(seed, timed, bounded, point, ptb, values):
    """Linear forms moved to a minimum 1 % above zero but not proved, or 1 % below but proved."""
    wrong, low, size = [], values.amin(0), values.amax(0) - values.amin(0)
    last = [layer for layer in bounded.model if isinstance(layer, torch.nn.Linear)][-1]
    bias = last.bias.data.clone()
    for share in (1.05 * CLEAR, -CLEAR):
        last.bias.data = bias + (share * size - low).to(bias)
        start, stop = time.process_time(), time.perf_counter() + (5 if timed else 30) * SECONDS
        lower = bounded.branch_and_bound(Region(point, ptb), torch.eye(2).to(point), stop)
        seconds = time.process_time() - start
        beyond = (lower.double() - share * size) / (1 + values.abs().max())
        if bool((beyond > TOLERANCE[point.dtype]).any()):
            wrong.append(f"seed {seed}: branch and bound passed by {float(beyond.max()):.3g}")
        if share > 0 and bool(((lower <= 0) & (size > 1e-6)).any()):
            wrong.append(f"seed {seed}: not proved, {lower.tolist()} after {seconds:.1f} s")
        elif (
            timed and share > 0 and bool((size > 1e-6).any()) and seconds > 2 * SECONDS
        ):  # two linear forms
            wrong.append(f"seed {seed}: proved in {seconds:.1f} s")
    last.bias.data = bias
    return wrong


@pytest.mark.parametrize("seed", FEW)
def test_bounds_hold_on_a_grid(seed):
    assert failures(seed, timed=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", ALL)
def test_bounds_hold_on_a_grid_for_every_network(seed):
    assert failures(seed, timed=True) == []
