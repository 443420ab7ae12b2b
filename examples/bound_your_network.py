"""Bound a network of your own on an l_inf and an l_2 set at once, by four methods.

Any ``nn.Module`` that maps (B, ...) to (B, K) will do. Here it is a small residual network that
learns scikit-learn's digits for a second. What is bounded is the margin f_y - f_k of every image
over every other class k: the specification C. A margin that stays positive is a certificate. An
attack comes from the other side: no lower bound may lie above a margin that it reaches.

Usage:
    python examples/bound_your_network.py
    python examples/bound_your_network.py --images 30 --eps-inf 0.02 --eps-2 0.1
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import BoundedModule, PerturbationL2Box, PerturbationLinf, margin_matrix, pgd
from lirpa_multinorm.data import batches, load

METHODS = ("IBP", "CROWN-IBP", "CROWN", "SDP-CROWN")  # from cheap to tight


class Net(nn.Module):
    """A network of your own: a strided convolution, a residual block, a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.inner = nn.Conv2d(8, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return self.head(x.flatten(1))


def fit(model, data, epochs=10):
    """Train without any robustness, so that there is something to bound."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for x, y in batches(data.x_train, data.y_train, 64, generator=order):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()  # certificates are of the network in eval mode


def main():
    """Bound, attack, compare."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--images", type=int, default=12, help="number of test images")
    parser.add_argument("--eps-inf", type=float, default=0.05, help="radius of the l_inf set")
    parser.add_argument("--eps-2", type=float, default=0.25, help="radius of the l_2 set")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load("digits")
    model = fit(Net(), data)
    x, y = data.x_test[: options.images], data.y_test[: options.images]

    # Both balls are cut with the pixel range [0, 1]; clip=None would be the plain ball.
    sets = [PerturbationLinf(options.eps_inf), PerturbationL2Box(options.eps_2)]
    bounded = BoundedModule(model, perturbations=sets)
    C = margin_matrix(y, num_classes=10)

    union, _ = bounded.compute_bounds(x, C=C, method="CROWN")  # holds on all points of both sets
    rows = {}
    for method in METHODS:  # norm by norm, in one pass; the union's bound is the least of them
        per_norm = [lb for lb, _ in bounded.compute_norm_bounds(x, C=C, method=method)]
        rows[method] = [torch.stack(per_norm).amin(0), *per_norm]
    attacked = [torch.einsum("bsk,bk->bs", C, model(points)) for points in pgd(model, x, y, sets)]
    sound = all(
        bool((lb <= seen + 1e-4).all())
        for margins in rows.values()
        for lb, seen in zip(margins[1:], attacked)
    )
    rows["attack (PGD)"] = [torch.stack(attacked).amin(0), *attacked]

    print(f"{len(x)} test images; " + "; ".join(perturbation.title() for perturbation in sets))
    print(f"{'mean lower bound by':<20}{'union':>9}{'l_inf':>9}{'l_2':>9}   positive for the union")
    for name, margins in rows.items():
        means = "".join(f"{lower.mean().item():9.3f}" for lower in margins)
        positive = (margins[0] > 0).all(dim=1).sum().item()  # certified; by the attack: unbroken
        print(f"{name:<20}{means}   {positive} of {len(x)}")
    print(f"union in one call, by CROWN: {union.mean().item():.3f}")
    print("sound: no bound lies above a margin under attack" if sound else "UNSOUND")
    return 0 if sound else 1


if __name__ == "__main__":
    raise SystemExit(main())
