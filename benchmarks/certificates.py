"""Audit of certificates: a strong attack on every (image, norm) pair that the cascade has certified.

    python -m benchmarks.certificates CHECKPOINT... --data mnist --n 1000

Certifies each checkpoint for its sets (ball and pixel range), then attacks the certified pairs: margin and
cross-entropy losses, long and short steps, many restarts. A falsified pair would mean an unsound bound; it is counted,
named, and makes the command fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter

import torch
from tqdm import tqdm

from lirpa_multinorm import AttackSettings, CertifySettings, certify
from lirpa_multinorm.attacks import margin_loss, pgd
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.training import load_checkpoint

from .common import write_result

#: Long steps find far points, short ones the last of a margin.
ATTACKS = [AttackSettings(steps=100, restarts=5, step_size=0.25), AttackSettings(steps=100, restarts=3, step_size=0.05),
           AttackSettings(steps=100, restarts=2, loss="ce", step_size=0.1)]
BATCH = 250


def falsified(model, x: torch.Tensor, y: torch.Tensor, perturbation, restarts: float) -> torch.Tensor:
    """Return which images an attack breaks inside the set."""
    broken = torch.zeros(len(x), dtype=torch.bool)
    for number, attack in enumerate(ATTACKS):
        attack = dataclasses.replace(attack, restarts=max(1, round(attack.restarts * restarts)))
        for images in torch.arange(len(x)).split(BATCH):
            generator = torch.Generator().manual_seed(1000 * number + int(images[0]))
            points, = pgd(model, x[images], y[images], [perturbation], attack, generator)
            with torch.no_grad():
                found = margin_loss(model(points), y[images]) >= 0
            broken[images] |= found & perturbation.contains(points, x[images])
    return broken


def main() -> int:
    """Audit the checkpoints and write benchmarks/results/certificates.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--restarts", type=float, default=1.0, help="times the restarts of every attack")
    args = parser.parse_args()
    data = load(args.data, data_dir=args.data_dir, download=False)
    x, y = to_unit(data.x_test[:args.n]), data.y_test[:args.n].long()
    rows, pairs, total = [], 0, 0
    for place, path in enumerate(tqdm(args.checkpoints, desc="checkpoints")):
        checkpoint = load_checkpoint(path)
        model = checkpoint.model.eval()
        found = certify(model, x, y, checkpoint.perturbations, CertifySettings(attack=None))
        for one, status, method in zip(checkpoint.perturbations, found.status, found.method):
            certified = torch.tensor([i for i, name in enumerate(status) if name == CERTIFIED], dtype=torch.long)
            broken = certified[falsified(model, x[certified], y[certified], one, args.restarts)].tolist()
            rows.append({"checkpoint": place, "loss": checkpoint.config.loss, "set": one.title(),
                         "certified pairs": len(certified), "falsified": broken,
                         "certified by": dict(Counter(method[i] for i in certified.tolist()))})
            pairs, total = pairs + len(certified), total + len(broken)
            print(rows[-1])
    write_result("certificates", {"n": args.n, "data": data.name, "restarts": args.restarts,
                                  "attacks": [dataclasses.asdict(one) for one in ATTACKS]},
                 {"pairs": pairs, "falsified": total, "rows": rows})
    print(f"{total} of {pairs} certified pairs falsified")
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
