"""Certified training for two norms in a training loop of your own.

The loop stays yours: model, DataLoader, optimizer, learning rates. What is added is a BoundedModule
around the model, a loss from ``build_loss``, and a radius that grows from 0 to its full size. A
network is trained on scikit-learn's digits by cross-entropy first, then by the certified loss, and
both are certified: what counts is the last column, the images that no point of either set fools.

Usage:
    python examples/train_your_loop.py
    python examples/train_your_loop.py --loss joint --epochs 20
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lirpa_multinorm import (
    BoundedModule,
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    build_loss,
    certify,
)
from lirpa_multinorm.data import load
from lirpa_multinorm.models import shi_init_
from lirpa_multinorm.training import Schedule

SETS = [PerturbationLinf(0.1), PerturbationL2Box(0.4)]
#: SABR's small box for l_inf; for l_2 no region, but the network's Lipschitz constant.
OPTIONS = {"ratio_inf": 0.4, "region_2": "lipschitz"}
CERTIFY = CertifySettings(methods=["IBP", "CROWN-IBP", "CROWN"])


def make_model():
    """Return the network, with weights from which interval bounds can be trained."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
    return shi_init_(nn.Sequential(*layers, nn.Linear(256, 100), nn.ReLU(), nn.Linear(100, 10)))


def train(model, loader, loss, epochs):
    """Train by a certified loss, or where it is None by cross-entropy alone."""
    bounded = BoundedModule(model, perturbations=SETS)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    schedule = Schedule("10%", "60%", kappa_start=0.5, kappa_end=0.2).in_epochs(epochs)
    bounded.train()
    for epoch in range(epochs):
        for batch, (x, y) in enumerate(loader):
            now = epoch + batch / len(loader)  # the schedule counts time in epochs
            scale, kappa = schedule.eps_scale(now), schedule.kappa(now)
            if loss is None or kappa == 1:
                total = F.cross_entropy(bounded(x), y)
            else:
                result = loss(bounded, x, y, eps_scale=scale)  # makes the clean pass as well
                clean = F.cross_entropy(result.logits, y)
                total = kappa * clean + (1 - kappa) * result.value
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            rates.step()
    return model.eval()


def main():
    """Train twice, certify, print one table."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--loss", choices=["max", "joint"], default="max", help="of both norms")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=200, help="test images that are certified")
    options = parser.parse_args()
    data = load("digits")
    x, y = data.x_test[: options.images], data.y_test[: options.images]

    titles = "; ".join(perturbation.title() for perturbation in SETS)
    print(f"{titles}; {len(x)} test images, shares in %")
    print(
        f"{'loss':<14}{'clean':>8}{'l_inf':>8}{'l_2':>8}{'attacked':>10}{'certified for both':>20}"
    )
    for name in ("natural", options.loss):
        order = torch.Generator().manual_seed(0)
        images = TensorDataset(data.x_train, data.y_train)
        loader = DataLoader(images, batch_size=64, shuffle=True, drop_last=True, generator=order)
        loss = None if name == "natural" else build_loss(name, SETS, **OPTIONS)
        model = train(make_model(), loader, loss, options.epochs)
        shares = certify(model, x, y, SETS, CERTIFY).summary()
        row = [shares["clean"], *shares["certified"]]
        print(f"{name:<14}" + "".join(f"{100 * share:8.1f}" for share in row), end="")
        print(f"{100 * shares['attacked_union']:10.1f}{100 * shares['certified_union']:20.1f}")


if __name__ == "__main__":
    main()
