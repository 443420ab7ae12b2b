"""Cost of the multi-norm module beside the host's own calls: interleaved medians, as ratios.

    python -m benchmarks.speed             # all
    python -m benchmarks.speed one_norm    # one of: one_norm two_norms crown_ibp
"""

from __future__ import annotations

import argparse

import torch

from lirpa_multinorm import PerturbationL2Box, PerturbationLinf, margin_matrix
from lirpa_multinorm.models import build_model

from .common import host_input, host_module, interleaved, our_module, ratio, write_result

EPS_INF, EPS_2 = 2 / 255, 0.25
INF = float("inf")


def _case(name: str, in_shape: tuple, batch: int, **options):
    torch.manual_seed(0)
    model = build_model(name, in_shape, 10, **options)
    x, y = torch.rand(batch, *in_shape), torch.randint(0, 10, (batch,))
    return model, x, margin_matrix(y, 10)


def _backward(bounds: list) -> None:
    sum(lower.sum() for lower in bounds).backward()


def one_norm(method: str, name: str, in_shape: tuple, batch: int, repeats: int, norm: float) -> dict:
    """Forward and backward of one norm: our module beside the host's, the same set (l_2: the plain ball)."""
    model, x, C = _case(name, in_shape, batch)
    ptb = PerturbationLinf(EPS_INF) if norm == INF else PerturbationL2Box(EPS_2, clip=None)
    ours, theirs = our_module(model, x, [ptb]), host_module(model, x)
    eps = EPS_INF if norm == INF else EPS_2
    timing = interleaved({
        "ours": lambda: _backward([ours.compute_bounds(x, C=C, method=method)[0]]),
        "host": lambda: _backward([theirs.compute_bounds(x=host_input(x, norm, eps), C=C, method=method)[0]]),
    }, repeats)
    return {"ratio": ratio(timing, "ours", "host"), "timing": timing}


def two_norms(method: str, name: str, in_shape: tuple, batch: int, repeats: int, clip) -> dict:
    """Forward and backward of l_inf and l_2 in one call, beside two calls of the host."""
    model, x, C = _case(name, in_shape, batch)
    ours = our_module(model, x, [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2, clip=clip)])
    theirs = host_module(model, x)

    def host_twice() -> None:
        _backward([theirs.compute_bounds(x=host_input(x, norm, eps), C=C, method=method)[0]
                   for norm, eps in ((INF, EPS_INF), (2, EPS_2))])

    timing = interleaved({
        "ours": lambda: _backward([lower for lower, _ in ours.compute_norm_bounds(x, C=C, method=method)]),
        "host twice": host_twice,
    }, repeats)
    return {"ratio": ratio(timing, "ours", "host twice"), "timing": timing}


CIFAR, MNIST = (3, 32, 32), (1, 28, 28)
CASES = {
    "one_norm": {
        "IBP l_inf, CNN7, batch 8": lambda r: one_norm("IBP", "cnn7", CIFAR, 8, r, INF),
        "IBP l_2 ball, CNN7, batch 8": lambda r: one_norm("IBP", "cnn7", CIFAR, 8, r, 2),
        "IBP l_inf, small CNN, batch 32": lambda r: one_norm("IBP", "cnn_small", MNIST, 32, r, INF),
        "IBP l_2 ball, small CNN, batch 32": lambda r: one_norm("IBP", "cnn_small", MNIST, 32, r, 2),
        "CROWN-IBP l_inf, small CNN, batch 32": lambda r: one_norm("CROWN-IBP", "cnn_small", MNIST, 32, r, INF),
        "CROWN-IBP l_2 ball, small CNN, batch 32": lambda r: one_norm("CROWN-IBP", "cnn_small", MNIST, 32, r, 2),
    },
    "two_norms": {
        "IBP, CNN7, batch 8": lambda r: two_norms("IBP", "cnn7", CIFAR, 8, r, None),
        "IBP, CNN7, batch 32": lambda r: two_norms("IBP", "cnn7", CIFAR, 32, max(3, r // 3), None),
        "IBP, CNN7, batch 8, l_2 with pixel range": lambda r: two_norms("IBP", "cnn7", CIFAR, 8, r, (0., 1.)),
        "CROWN-IBP, small CNN, batch 1": lambda r: two_norms("CROWN-IBP", "cnn_small", MNIST, 1, 3 * r, None),
        "CROWN-IBP, small CNN, batch 8": lambda r: two_norms("CROWN-IBP", "cnn_small", MNIST, 8, r, None),
        "CROWN-IBP, small CNN, batch 8, l_2 with pixel range":
            lambda r: two_norms("CROWN-IBP", "cnn_small", MNIST, 8, r, (0., 1.)),
    },
}


def main() -> None:
    """Run the cases asked for and write one result file each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    for name in args.cases:
        result = {label: run(args.repeats) for label, run in CASES[name].items()}
        for label, values in result.items():
            print(f"{name}: {label}: {values['ratio']['median']:.3f} {values['ratio']['quartiles']}")
        write_result(f"speed_{name}", {"repeats": args.repeats, "eps_inf": EPS_INF, "eps_2": EPS_2}, result)


if __name__ == "__main__":
    main()
