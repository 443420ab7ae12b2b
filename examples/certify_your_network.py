"""Certify a network with weights of your own, interrupt it, go on, and read what was recorded.

The weights are a plain state dict, as ``torch.save(model.state_dict(), path)`` writes it, of the
class below: put your own class in its place. Without ``--weights`` the network learns
scikit-learn's digits. The first call stops after a second; the second one goes on where it stopped,
as it would after a crash. What is printed then is read from the records, one JSON line per image.

Usage:
    python examples/certify_your_network.py --output runs/certified_mine
    python examples/certify_your_network.py --output runs/weights --weights mine.pt --images 200
"""

import argparse
from collections import Counter
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from lirpa_multinorm import (
    CertifySettings,
    PerturbationL2Box,
    PerturbationLinf,
    certified_accuracy,
    certify_to,
    read_records,
)
from lirpa_multinorm.certification import CERTIFIED, NOT_RUN
from lirpa_multinorm.data import batches, load

SETS = [PerturbationLinf(0.05), PerturbationL2Box(0.25)]
SETTINGS = CertifySettings(batch_size=10)  # attack, then bounds from IBP to branch and bound


class Net(nn.Module):
    """A network of your own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.hidden = nn.Linear(128, 50)
        self.head = nn.Linear(50, 10)

    def forward(self, x):
        """Return logits (B, 10) of images (B, 1, 8, 8)."""
        return self.head(F.relu(self.hidden(F.relu(self.conv(x)).flatten(1))))


def fitted(data, epochs=10):
    """Return a network's state dict after training without any robustness."""
    torch.manual_seed(0)
    model, order = Net(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    for _ in range(epochs):
        for x, y in batches(data.x_train, data.y_train, 64, generator=order):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.state_dict()


def main():
    """Certify in two goes, then read the records."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--output", required=True, help="folder of the records")
    parser.add_argument("--weights", help="file of a state dict")
    parser.add_argument("--images", type=int, default=60, help="number of test images")
    options = parser.parse_args()
    data, model = load("digits"), Net()
    model.load_state_dict(torch.load(options.weights) if options.weights else fitted(data))
    x, y = data.x_test[: options.images], data.y_test[: options.images]

    hurried = replace(SETTINGS, total_time_limit=1.0)
    part = certify_to(options.output, model, x, y, SETS, hurried, resume=True)
    left = int(part.is_status(NOT_RUN).any(0).sum())
    print(f"the first call got through {len(part) - left} of {len(part)} images")
    certify_to(options.output, model, x, y, SETS, SETTINGS, resume=True)

    records = read_records(options.output)
    for perturbation, status, method in zip(SETS, records.status, records.method):
        counts = ", ".join(f"{n} {name}" for name, n in Counter(status).items())
        decided = ", ".join(f"{name}: {n}" for name, n in Counter(method).items() if name)
        print(f"{perturbation.title()}: {counts}\n    decided by {decided}")
    proved = records.is_status(CERTIFIED)  # (sets, images)
    both, (linf, l2) = int(proved.all(0).sum()), proved.sum(1).tolist()
    print(f"certified for both: {both}, l_inf only: {linf - both}, l_2 only: {l2 - both}")
    shares = certified_accuracy(records)
    low, high = (100 * end for end in shares["intervals"]["certified_union"])
    union = f"{100 * shares['certified_union']:.1f} % (95 % interval {low:.1f} to {high:.1f})"
    print(f"clean accuracy {100 * shares['clean']:.1f} %, union certified accuracy {union}")
    for (index, image), point in records.adversarial.items():  # each one can be checked
        assert SETS[index].contains(point[None], x[image][None])
        assert model(point[None]).argmax() != y[image]
    print(f"{len(records.adversarial)} adversarial examples in the records, all inside their sets")


if __name__ == "__main__":
    main()
