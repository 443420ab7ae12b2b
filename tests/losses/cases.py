"""Every loss by its name and options, beside the formula by hand; and networks to try them on."""

import functools
import math
from typing import Any, NamedTuple

import torch

from lirpa_multinorm import (
    BoundedModule,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    build_loss,
)
from tests.checks import assert_same
from tests.losses.slow_losses import (
    Slow,
    alignment,
    ball,
    clipped_ball,
    cure,
    released,
    sabr,
    term_losses,
    whole_set,
)
from tests.networks import batch_norm_conv, conv, flipped_conv, mlp, normalized_conv, pixels

EPS_INF, EPS_2, EPS_1, SEED = 0.08, 0.3, 0.6, 7
SETS = [PerturbationLinf(EPS_INF), PerturbationL2Box(EPS_2)]
THREE = [*SETS, PerturbationL1Box(EPS_1)]

LINF_SET, L2_SET, L1_SET = (
    Slow(whole_set, math.inf, EPS_INF),
    Slow(whole_set, 2, EPS_2),
    Slow(whole_set, 1, EPS_1),
)
SABR, CURE, CURE_1 = (
    Slow(sabr, math.inf, EPS_INF, 0.4),
    Slow(cure, 2, EPS_2, 1e-5),
    Slow(cure, 1, EPS_1, 1e-5),
)
BALL, BALL_1, RELEASED = (
    Slow(ball, 2, EPS_2, 0.5),
    Slow(ball, 1, EPS_1, 0.5),
    Slow(released, 2, EPS_2, 1e-5),
)


class Aligned(NamedTuple):
    """Bound alignment by hand: the (target, other) numbers of terms."""

    eta: float
    pairs: list
    detach: bool = False


class Case(NamedTuple):
    """A loss by name with its options, its terms by hand, and how they are combined."""

    name: str
    options: dict
    terms: list
    how: Any = "mean"
    aligned: Aligned = Aligned(0.0, [])
    sets: list = SETS


def mixed(mix, alpha=0.5, attack_scale=1.0):
    options = {"mix": mix, "alpha": alpha, "attack_scale": attack_scale}
    return [term._replace(**options) for term in (LINF_SET, L2_SET)]


CASES = {
    "ibp": Case("ibp", {}, [LINF_SET, L2_SET]),
    "ibp_three": Case("ibp", {}, [LINF_SET, L2_SET, L1_SET], sets=THREE),
    "sabr": Case("sabr", {}, [SABR]),
    "sabr_0.7": Case("sabr", {"ratio_inf": 0.7}, [SABR._replace(ratio=0.7)]),
    "sabr_shrunk": Case(
        "sabr", {"ratio_inf": 1, "shrink_inf": 0.4}, [SABR._replace(ratio=1, shrink=0.4)]
    ),
    "cure_l2": Case("cure_l2", {}, [CURE]),
    "cure_l2_0.3": Case("cure_l2", {"ratio_2": 0.3}, [CURE._replace(ratio=0.3)]),
    "cure_l2_ball": Case(
        "cure_l2", {"ratio_2": 0.3, "region_2": "ball"}, [BALL._replace(ratio=0.3)]
    ),
    "cure_l2_clipped": Case(
        "cure_l2", {"ratio_2": 0.5, "region_2": "clipped_ball"}, [BALL._replace(make=clipped_ball)]
    ),
    "cure_l2_whole_ball": Case(
        "cure_l2", {"ratio_2": 1, "region_2": "ball"}, [BALL._replace(ratio=1)]
    ),
    "cure_l2_released": Case("cure_l2", {"region_2": "released"}, [RELEASED]),
    "cure_l2_released_0.3": Case(
        "cure_l2", {"region_2": "released", "ratio_2": 0.3}, [RELEASED._replace(ratio=0.3)]
    ),
    "joint": Case("joint", {}, [SABR, CURE]),
    "joint_weighted": Case("joint", {"weights": (0.8, 0.2)}, [SABR, CURE], (0.8, 0.2)),
    "joint_linf_only": Case("joint", {"weights": (1, 0)}, [SABR, CURE], (1, 0)),
    "joint_released": Case("joint", {"region_2": "released"}, [RELEASED, SABR], sets=SETS[::-1]),
    "joint_shrunk": Case(
        "joint",
        {"shrink_inf": 0.4, "region_2": "set", "shrink_2": 1.0},
        [SABR._replace(shrink=0.4), L2_SET._replace(shrink=1.0)],
    ),
    "joint_one_mixed": Case(
        "joint",
        {"mix_2": "mtl", "alpha_2": 0.3, "shrink_inf": 0.5},
        [SABR._replace(shrink=0.5), CURE._replace(mix="mtl", alpha=0.3)],
    ),
    "max": Case("max", {}, [SABR, CURE], "max"),
    "max_ball": Case("max", {"ratio_2": 0.5, "region_2": "ball"}, [SABR, BALL], "max"),
    "max_three": Case(
        "max",
        {"region_2": "ball", "ratio_2": 0.5, "region_1": "ball", "ratio_1": 0.5},
        [SABR, BALL, BALL_1],
        "max",
        sets=THREE,
    ),
    "random": Case("random", {}, [SABR, CURE], "random"),
    "random_ball": Case("random", {"ratio_2": 0.5, "region_2": "ball"}, [SABR, BALL], "random"),
    "random_three": Case("random", {}, [SABR, CURE, CURE_1], "random", sets=THREE),
    "random_shrunk": Case(
        "random",
        {"region_2": "set", "shrink_2": 0.6},
        [SABR, L2_SET._replace(shrink=0.6)],
        "random",
    ),
    "random_overlapping": Case("random", {"blocks": "overlapping"}, [SABR, CURE], "overlapping"),
    "cure": Case("cure", {}, [SABR, CURE], "max", Aligned(2.0, [(1, 0)])),
    "cure_inf": Case(
        "cure", {"eta": 0.5, "target": "inf"}, [SABR, CURE], "max", Aligned(0.5, [(0, 1)])
    ),
    "cure_detached": Case(
        "cure", {"detach": True}, [SABR, CURE], "max", Aligned(2.0, [(1, 0)], True)
    ),
    "cure_both": Case(
        "cure", {"target": "both"}, [SABR, CURE], "max", Aligned(2.0, [(0, 1), (1, 0)])
    ),
    "cure_joint": Case(
        "cure",
        {"combine": "joint", "weights": (0.3, 0.7)},
        [SABR, CURE],
        (0.3, 0.7),
        Aligned(2.0, [(1, 0)]),
    ),
    "cure_eta_0": Case("cure", {"eta": 0}, [SABR, CURE], "max"),
    "cure_three": Case(
        "cure",
        {"target": 1, "region_1": "ball", "ratio_1": 0.5},
        [SABR, CURE, BALL_1],
        "max",
        Aligned(2.0, [(2, 0), (2, 1)]),
        THREE,
    ),
    "cure_three_both": Case(
        "cure",
        {"target": "both", "detach": True},
        [SABR, CURE, CURE_1],
        "max",
        Aligned(2.0, [(q, r) for q in range(3) for r in range(3) if q != r], True),
        THREE,
    ),
    "cure_mixed": Case(
        "cure",
        {"mix_2": "cc", "alpha_2": 0.2, "region_2": "set", "eta": 1.5},
        [SABR, L2_SET._replace(mix="cc", alpha=0.2)],
        "max",
        Aligned(1.5, [(1, 0)]),
    ),
    "mtl": Case("mtl_ibp", {"alpha": 0.3}, mixed("mtl", 0.3), "max"),
    "mtl_joint": Case("mtl_ibp", {"alpha": 0.6, "combine": "joint"}, mixed("mtl", 0.6)),
    "mtl_wide_attack": Case(
        "mtl_ibp", {"alpha": 0.01, "attack_scale": 2.0}, mixed("mtl", 0.01, 2.0), "max"
    ),
    "mtl_random": Case("mtl_ibp", {"alpha": 0.3, "combine": "random"}, mixed("mtl", 0.3), "random"),
    "cc": Case("cc_ibp", {"alpha": 0.3}, mixed("cc", 0.3), "max"),
    "cc_box": Case(
        "cc_ibp",
        {"alpha": 0.8, "region_2": "box", "ratio_2": 0.2, "combine": "joint"},
        [mixed("cc", 0.8)[0], CURE._replace(ratio=0.2, mix="cc", alpha=0.8)],
    ),
    "exp": Case("exp_ibp", {"alpha": 0.3}, mixed("exp", 0.3), "max"),
    "exp_ball": Case(
        "exp_ibp",
        {"alpha": 0.9, "region_2": "ball", "ratio_2": 0.5, "region_inf": "box"},
        [SABR._replace(mix="exp", alpha=0.9), BALL._replace(mix="exp", alpha=0.9)],
        "max",
    ),
}

NETWORKS = {
    "mlp": mlp,
    "conv": conv,
    "normalized_conv": normalized_conv,
    "flipped_conv": flipped_conv,
    "BatchNorm": batch_norm_conv,
}
#: Terms by hand, their sets and the options of their LossTerm.
REGIONS = {
    "whole l_inf": (LINF_SET, SETS[0], {"region": "set"}),
    "SABR": (SABR, SETS[0], {"ratio": 0.4}),
    "whole l_2": (L2_SET, SETS[1], {"region": "set"}),
    "CURE": (CURE._replace(ratio=0.3), SETS[1], {"ratio": 0.3}),
    "l_2 ball": (BALL, SETS[1], {"region": "ball", "ratio": 0.5}),
    "whole l_1": (L1_SET, THREE[2], {"region": "set"}),
}


def images(count=7):
    """Some pixels at the ends of [0, 1], so that clip acts."""
    x = pixels(count, 2, 4, 4, seed=1, beyond=0.1, dtype=torch.float64)
    return x, torch.arange(count) % 3


def some_right(model, x):
    """Labels of which every other one is the model's own answer.

    So some examples are proved and some are not.
    """
    with torch.no_grad():
        answers = model(x).argmax(1)
    return torch.where(torch.arange(len(x)) % 2 == 0, answers, (answers + 1) % 3)


# --- both ways ------------------------------------------------------------------------------------


def combined(losses, how):
    if how == "max":
        return sum(max(pair, key=torch.Tensor.item) for pair in zip(*losses)) / len(losses[0])
    if isinstance(how, tuple):
        return sum(weight * loss.mean() for weight, loss in zip(how, losses))
    return sum(loss.mean() for loss in losses) / len(losses)


def by_hand(model, x, y, case, statistics=None, scale=1.0):
    """(value, alignment term, what each term comes to)."""
    result = term_losses(
        model, x, y, [item.at(scale) for item in case.terms], SEED, statistics, case.how
    )
    value, aligned = combined([item.loss for item in result], case.how), case.aligned
    terms = [
        alignment(
            result[q].margins.detach() if aligned.detach else result[q].margins, result[r].margins
        )
        for q, r in aligned.pairs
    ]
    return value + aligned.eta * sum(terms), sum(terms), result


def of_package(model, x, y, case, scale=1.0, **more):
    loss = build_loss(case.name, case.sets, **case.options, **more)
    bounded = BoundedModule(model, perturbations=case.sets)
    return loss(bounded, x, y, eps_scale=scale, generator=torch.Generator().manual_seed(SEED))


def gradients(value, model):
    result = torch.autograd.grad(
        value, list(model.parameters()), retain_graph=True, allow_unused=True
    )
    return [
        torch.zeros_like(p) if item is None else item for p, item in zip(model.parameters(), result)
    ]


#: A bias that BatchNorm cancels has a gradient of rounding errors only.
assert_same_gradients = functools.partial(assert_same, rtol=1e-12, atol=1e-12)
