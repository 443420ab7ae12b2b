"""How much of published l_2 networks is certified: this package's cascade beside published figures.

    python -m benchmarks.certified --reference FOLDER [--networks mnist_convsmall] [--branch 60]

FOLDER holds the weights (mnist_convsmall.pth, cifar10_cnn_c.pth of the SDP-CROWN repository) and in sdp200/mnist and
sdp200/cifar the 200 images and labels that its paper verifies (X_sdp.npy, NHWC in [0, 1]; y_sdp.npy); none of them is
part of this project. Writes certified.json (with --branch certified_branch.json): per network and set the verified
share by method, its limit by an attack, the published figures, and the images on which the pixel range loses against
the plain ball (there should be none).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lirpa_multinorm import CertifySettings, PerturbationL2Box, certify
from lirpa_multinorm.attacks import AttackSettings
from lirpa_multinorm.certification import CERTIFIED, METHODS
from lirpa_multinorm.models import Normalize

from .common import write_result

ATTACKS = (AttackSettings(steps=100, restarts=5), AttackSettings(steps=100, restarts=2, loss="ce"))
MEAN = (125.3 / 255, 123 / 255, 113.9 / 255)


def _conv_small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


def _cnn_c() -> nn.Sequential:
    return nn.Sequential(Normalize(MEAN, (0.225,) * 3), nn.Conv2d(3, 8, 4, 2), nn.ReLU(), nn.Conv2d(8, 16, 4, 2),
                         nn.ReLU(), nn.Flatten(), nn.Linear(576, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
                         nn.Linear(64, 10))


#: Network, images, radius, and verified % of the 200 images in Table 1 of SDP-CROWN (Chiu et al., ICML 2025).
NETWORKS = {
    "mnist_convsmall": (_conv_small, "mnist", 0.3, {"alpha-CROWN": 0.0, "beta-CROWN": 16.0, "LipNaive": 77.5,
                                                    "SDP-CROWN": 81.5, "PGD": 84.5}),
    "cifar10_cnn_c": (_cnn_c, "cifar", 24 / 255, {"alpha-CROWN": 24.5, "beta-CROWN": 35.5, "LipNaive": 36.5,
                                                  "SDP-CROWN": 42.5, "PGD": 47.0}),
}


def load(name: str, reference: Path) -> tuple:
    """Return the network, images, labels, radius and published figures."""
    make, images, eps, published = NETWORKS[name]
    model = make().eval()
    weights = torch.load(reference / f"{name}.pth", weights_only=True, map_location="cpu")
    for parameter, value in zip(model.parameters(), weights.values()):
        parameter.data.copy_(value)
    folder = reference / "sdp200" / images
    x = torch.from_numpy(np.load(folder / "X_sdp.npy")).float().permute(0, 3, 1, 2).contiguous()
    return model, x, torch.from_numpy(np.load(folder / "y_sdp.npy")).long().flatten(), eps, published


def measure(name: str, reference: Path, n: int, branch: float) -> dict:
    """Certify one network against the plain ball and its part in the pixel range."""
    model, x, y, eps, published = load(name, reference)
    x, y, rows, certified = x[:n], y[:n], [], []
    methods = [*METHODS, "BaB"] if branch else METHODS
    settings = CertifySettings(methods, ATTACKS, time_limit=branch or None)
    for clip in (None, (0.0, 1.0)):
        ptb, start = PerturbationL2Box(eps, clip), time.perf_counter()
        found = certify(model, x, y, [ptb], settings, progress=True)
        summary = found.summary()
        certified.append(found.is_status(CERTIFIED)[0])
        rows.append({"set": ptb.title(), "clean %": 100 * summary["clean"],
                     "verified %": 100 * summary["certified"][0], "PGD limit %": 100 * summary["attacked"][0],
                     "decided by": dict(Counter(found.method[0])), "seconds": time.perf_counter() - start})
        print(name, rows[-1])
    lost = (certified[0] & ~certified[1]).nonzero().squeeze(1).tolist()
    return {"eps": eps, "n": len(x), "published %": published, "rows": rows, "lost by the pixel range": lost}


def main() -> None:
    """Certify the networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--branch", type=float, default=0.0, help="seconds per image for branch and bound (0: none)")
    args = parser.parse_args()
    found = {name: measure(name, args.reference, args.n, args.branch) for name in args.networks}
    settings = {"methods": [*METHODS, "BaB"] if args.branch else METHODS, "branch_seconds": args.branch}
    write_result("certified_branch" if args.branch else "certified", settings, found)


if __name__ == "__main__":
    main()
