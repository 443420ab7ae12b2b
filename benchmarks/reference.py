"""What the pixel range is worth: CROWN over the l_2 ball and over ball and pixel range, on a published network.

    python -m benchmarks.reference --weights mnist_cnn_a_adv.pth --images X.npy --labels y.npy

The network is CNN-A of the verification literature (conv 16 4x4 stride 2, conv 32 4x4 stride 2, linear 100, linear
10; no normalisation), its weights as published with alpha-beta-CROWN; the images are the 200 MNIST test images that
several papers verify, (n, 28, 28, 1) in [0, 1]. Neither is part of this project. Reports certified images of the host
alone, of our ball and of ball and pixel range, how far our ball differs from the host's, and times.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from lirpa_multinorm import AttackSettings, BoundedModule, PerturbationL2Box, margin_matrix, pgd
from lirpa_multinorm.attacks import margin_loss
from lirpa_multinorm.models import build_model

from .common import host_input, host_module, interleaved, ratio, write_result


def load(args: argparse.Namespace) -> tuple:
    """Return the network, images and labels."""
    model = build_model("cnn_small", (1, 28, 28), 10).eval()
    weights = torch.load(args.weights, weights_only=True).values()
    model.load_state_dict(dict(zip(model.state_dict(), weights)))
    x = torch.from_numpy(np.load(args.images)).float().permute(0, 3, 1, 2).contiguous()
    return model, x[:args.n], torch.from_numpy(np.load(args.labels)).long()[:args.n]


@torch.no_grad()
def lower_bounds(call, x: torch.Tensor, C: torch.Tensor, batch: int) -> torch.Tensor:
    """Return the lower margin bounds of all images, batch by batch."""
    return torch.cat([call(x[i:i + batch], C[i:i + batch]) for i in range(0, len(x), batch)])


def certified(lower: torch.Tensor) -> int:
    """Return how many images have all margins positive."""
    return int((lower > 0).all(1).sum())


def compare(model, x, y, eps: float, batch: int) -> dict:
    """Return certified counts and an attack's upper limit at one radius."""
    C = margin_matrix(y, 10)
    theirs = host_module(model, x[:batch])
    host_lower = lower_bounds(lambda a, c: theirs.compute_bounds(x=host_input(a, 2, eps), C=c, method="CROWN")[0],
                              x, C, batch)
    row = {"eps": eps, "n": len(x), "host": certified(host_lower)}
    for name, clip in (("ball", None), ("ball and pixel range", (0., 1.))):
        bounded = BoundedModule(model, perturbations=[PerturbationL2Box(eps, clip)])
        lower = lower_bounds(lambda a, c: bounded.compute_bounds(a, C=c, method="CROWN")[0], x, C, batch)
        row[name] = certified(lower)
        if clip is None:
            row["largest difference to the host"] = float((lower - host_lower).abs().max())
    ball, cut = PerturbationL2Box(eps, None), PerturbationL2Box(eps)
    for name, one in (("PGD ball", ball), ("PGD ball and pixel range", cut)):
        points, = pgd(model, x, y, [one], AttackSettings(steps=50, restarts=2), torch.Generator().manual_seed(0))
        row[name] = int((margin_loss(model(points), y) < 0).sum())
    return row


def speed(model, x, y, eps: float, repeats: int) -> dict:
    """Time CROWN over the ball and over ball and pixel range, interleaved, and the host's own call."""
    C, theirs = margin_matrix(y, 10), host_module(model, x)
    ball, cut = (BoundedModule(model, perturbations=[PerturbationL2Box(eps, clip)]) for clip in (None, (0., 1.)))
    with torch.no_grad():
        timing = interleaved({"ball": lambda: ball.compute_bounds(x, C=C, method="CROWN"),
                              "ball and pixel range": lambda: cut.compute_bounds(x, C=C, method="CROWN"),
                              "host ball": lambda: theirs.compute_bounds(x=host_input(x, 2, eps), C=C, method="CROWN")},
                             repeats)
    return {"ratio": ratio(timing, "ball and pixel range", "ball"), "ball to host": ratio(timing, "ball", "host ball"),
            "timing": timing}


def main() -> None:
    """Compare at several radii and write benchmarks/results/reference.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "images", "labels"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.3, 0.35, 0.4])
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    model, x, y = load(args)
    rows = []
    for eps in args.eps:
        rows.append(compare(model, x, y, eps, args.batch))
        print(rows[-1])
        first = compare(model, x[:40], y[:40], eps, args.batch)
        rows.append(first)
        print(first)
    times = speed(model, x[:args.batch], y[:args.batch], args.eps[0], args.repeats)
    print({name: values["median"] for name, values in times.items() if name != "timing"})
    write_result("reference", {"network": "mnist_cnn_a_adv", "batch": args.batch}, {"certified": rows, "speed": times})


if __name__ == "__main__":
    main()
