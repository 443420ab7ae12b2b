"""Register a norm of your own and bound a network on its ball, cut with the pixel range.

A norm is one class: its dual, a bound of a linear functional on ball and box together, and two
moves for attacks. This one is l_p for any p between 1 and infinity; with p = 1.5 the ball lies
between those of l_1 and l_2, and so must the bounds. ``docs/adding-a-norm.md`` has the contract and
a simpler ``support``; the one below takes the best multiplier of the ball, found by bisection.

Usage:
    python examples/add_a_norm.py
    python examples/add_a_norm.py --p 4 --eps 0.2
"""

import argparse

import torch

from lirpa_multinorm import BoundedModule, PerturbationLpBox, margin_matrix, pgd
from lirpa_multinorm.data import load
from lirpa_multinorm.perturbations import Norm, register_norm
from lirpa_multinorm.training import ModelSpec, TrainConfig, train

METHODS = ("IBP", "CROWN", "SDP-CROWN")


class LpNorm(Norm):
    """The l_p norm, 1 < p < infinity."""

    def __init__(self, p):
        self.p, self.dual = p, p / (p - 1)

    def support(self, a, lo, hi, eps):
        """Return the least dual value; each is at least the maximum, so stopping early is safe."""
        size, cap, eps = a.abs(), torch.where(a >= 0, hi, -lo), eps.clamp(min=1e-6)
        budget = eps**self.p

        def best(multiplier):
            """Maximise ``|a|.d - multiplier / p (||d||_p^p - eps^p)`` over the box."""
            return torch.minimum((size.detach() / multiplier[..., None]) ** (self.dual - 1), cap)

        with torch.no_grad():  # the sought multiplier is this one for the ball alone, else smaller
            high = torch.linalg.vector_norm(size, self.dual, dim=-1) / eps ** (self.p - 1)
            high = high.clamp(min=1e-12)
            low = 1e-6 * high
            for _ in range(20):
                middle = (low * high).sqrt()
                inside = (best(middle) ** self.p).sum(-1) <= budget
                low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        d = best(high)
        return (size * d).sum(-1) + high / self.p * (budget - (d**self.p).sum(-1))

    def steepest(self, gradient, stuck):
        """Return the direction of l_p length 1 that rises most."""
        step = gradient.sign() * gradient.abs() ** (self.dual - 1)
        return step / torch.linalg.vector_norm(step, self.p, dim=1, keepdim=True).clamp(min=1e-12)

    def project(self, offset, eps):
        """Shrink an offset into the ball; no coordinate may move away from 0."""
        length = torch.linalg.vector_norm(offset, self.p, dim=1).clamp(min=1e-12)
        return offset * (eps / length).clamp(max=1)[:, None]


def main():
    """Register, bound, attack, compare."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--p", type=float, default=1.5, help="the norm: l_p")
    parser.add_argument("--eps", type=float, default=0.4, help="radius of all balls")
    options = parser.parse_args()
    register_norm(LpNorm(options.p))  # from here on PerturbationLpBox(norm=p, ...) is a set
    norms = sorted({1, 2, float("inf"), options.p})
    sets = [PerturbationLpBox(norm, options.eps) for norm in norms]  # cut with [0, 1]

    data = load("digits")
    spec = ModelSpec("mlp", data.in_shape, data.num_classes, options={"hidden": [40]})
    config = TrainConfig("natural", epochs=10, batch_size=64, learning_rate=5e-3, milestones=())
    model = train(spec, data, sets, config, progress=False)
    x, y = data.x_test[:20], data.y_test[:20]
    C = margin_matrix(y, num_classes=10)
    bounded = BoundedModule(model, perturbations=sets)
    bounds_of = [bounded.compute_norm_bounds(x, C=C, method=method) for method in METHODS]
    sound = True
    print(f"least margin, mean of {len(x)} test images; balls of radius {options.eps:g}")
    print("norm" + "".join(f"{name:>11}" for name in [*METHODS, "attack"]) + "  certified")
    for norm, points, *bounds in zip(norms, pgd(model, x, y, sets), *bounds_of):
        reached = torch.einsum("bsk,bk->bs", C, model(points))
        sound &= all(bool((lb <= reached + 1e-4).all()) for lb, _ in bounds)
        rows = [*(lb for lb, _ in bounds), reached]
        proved = int((rows[-2] > 0).all(1).sum())
        print(
            f"{norm:<4g}" + "".join(f"{margins.amin(1).mean():11.3f}" for margins in rows), end=""
        )
        print(f"{proved:5} of {len(x)}")
    print("sound: no bound lies above a margin under attack" if sound else "UNSOUND")
    return 0 if sound else 1


if __name__ == "__main__":
    raise SystemExit(main())
