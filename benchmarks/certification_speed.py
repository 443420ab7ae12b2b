"""Union certification beside a loop that calls the host once per norm and method.

    python -m benchmarks.certification_speed CHECKPOINT --data mnist [--n 1000] [--eps-inf 0.1 --eps-2 0.5]

Both bound the same sets (l_inf cut with the pixel range, the plain l_2 ball: the host knows no other) by IBP, CROWN-IBP
and CROWN, without an attack. The loop bounds every correctly classified image by every method; ours only what is open,
all norms in one batch. Reports the ratio of times, interleaved, and fails unless all verdicts are the same.
"""

from __future__ import annotations

import argparse

import torch

from lirpa_multinorm import CertifySettings, PerturbationL2Box, PerturbationLinf, certify, margin_matrix
from lirpa_multinorm.certification import CERTIFIED
from lirpa_multinorm.data import load, to_unit
from lirpa_multinorm.training import load_checkpoint

from .common import host_input, host_module, interleaved, ratio, write_result

METHODS = ("IBP", "CROWN-IBP", "CROWN")


@torch.no_grad()
def host_loop(model, x: torch.Tensor, y: torch.Tensor, sets: list, batch: int) -> torch.Tensor:
    """Return which (set, image) pairs the host certifies by any method."""
    theirs, right = host_module(model, x[:batch]), (model(x).argmax(1) == y).nonzero().squeeze(1)
    found = torch.zeros(len(sets), len(x), dtype=torch.bool)
    for place, one in enumerate(sets):
        for method in METHODS:
            for images in right.split(batch):
                perturbed = host_input(x[images], one.norm, one.eps)
                lower, _ = theirs.compute_bounds(x=perturbed, C=margin_matrix(y[images], 10), method=method,
                                                 bound_upper=False)
                found[place, images] |= (lower > 0).all(1)
    return found


def main() -> None:
    """Time both and write benchmarks/results/certification_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.checkpoint)
    model, data = checkpoint.model.eval(), load(args.data, data_dir=args.data_dir, download=False)
    x, y = to_unit(data.x_test[:args.n]), data.y_test[:args.n].long()
    eps = {one.norm: one.eps for one in checkpoint.perturbations}
    sets = [PerturbationLinf(eps[float("inf")]), PerturbationL2Box(eps[2.0], clip=None)]
    settings, verdicts = CertifySettings(METHODS, attack=None, batch_size=args.batch), {}

    def ours() -> None:
        verdicts["ours"] = certify(model, x, y, sets, settings).is_status(CERTIFIED)

    def loop() -> None:
        verdicts["host"] = host_loop(model, x, y, sets, args.batch)

    timing = interleaved({"ours": ours, "host loop": loop}, args.repeats, warmup=0)
    different = int((verdicts["ours"] != verdicts["host"]).sum())
    if different:
        raise SystemExit(f"{different} verdicts differ; the times are not comparable")
    result = {"host loop to ours": ratio(timing, "host loop", "ours"), "timing": timing, "n": len(x),
              "certified": verdicts["ours"].float().mean(1).tolist(), "different verdicts": different}
    print({name: value for name, value in result.items() if name != "timing"})
    settings = {"checkpoint_train": checkpoint.config.to_dict(), "methods": METHODS, "n": len(x), "batch": args.batch,
                "sets": [one.title() for one in sets]}
    write_result("certification_speed", settings, result)


if __name__ == "__main__":
    main()
