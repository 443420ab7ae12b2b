"""The loss of l_inf-distance networks: a clipped hinge of margins, and a scaled cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..bounds import BoundedModule, margin_matrix
from ..bounds.margins import check_labels
from ..bounds.offered import distance_layers, limit_constant, set_exponents
from ..errors import InvalidArgumentError
from ..perturbations.described import AnySet
from ..utils import distributed
from .multinorm import LossResult, MultiNormLoss, check_types
from .options import of_norm
from .terms import LossTerm


class DistanceLoss(MultiNormLoss):
    """Train margins of an l_inf-distance network, without an attack or propagation.

    With L the network's constant in l_inf and ``theta = 2 L eps_train``, the loss is the mean of
    ``clip(max_k (f_k - f_y + theta) / theta, 0, 1)``, which is 1 for images that are misclassified
    and 0 from the margin theta on, plus lambda times the cross-entropy of ``s f``, where s is the
    last layer's ``scale``. From one share of the run to another the exponent p of the distance
    layers rises from 8 to 1000 and lambda falls, both geometrically; then p is inf.

    Args:
        perturbations: The sets, one of them an l_inf ball; the others are left out.
        eps_train: Radius at which the hinge of a distance network is 0; None: 1.5 eps.
        relax_from: Share of the run that is done when p and lambda begin to change.
        relax_to: Share at which they have their last values, less than 1.
        p_start: First exponent of the distance layers.
        p_end: Last exponent before inf.
        lambda_start: First weight of the scaled cross-entropy.
        lambda_end: Last weight of the scaled cross-entropy.
        powers_of_two: Whether p is rounded to a power of two, which is quicker.

    Raises:
        InvalidArgumentError: There is no l_inf ball, or an argument is out of range.

    Source: Zhang et al. 2022, "Boosting the Certified Robustness of L-infinity Distance Nets",
        section 4, and its released code (schedules by the step).

    Example:
        >>> import torch
        >>> from lirpa_multinorm import PerturbationLinf
        >>> from lirpa_multinorm.models import build_model
        >>> _ = torch.manual_seed(0)
        >>> bounded = BoundedModule(build_model("linf_dist_mlp", (1, 2, 2), 3, hidden=[8]))
        >>> loss = DistanceLoss([PerturbationLinf(0.1)], lambda_start=0.0, lambda_end=0.0)
        >>> loss(bounded, torch.rand(2, 1, 2, 2), torch.tensor([0, 1])).value.shape
        torch.Size([])
    """

    follows_run = True

    def __init__(
        self,
        perturbations: Sequence[AnySet],
        eps_train: float | None = None,
        relax_from: float = 0.05,
        relax_to: float = 0.9,
        p_start: float = 8.0,
        p_end: float = 1000.0,
        lambda_start: float = 0.05,
        lambda_end: float = 0.0002,
        powers_of_two: bool = False,
    ) -> None:
        (perturbation,) = of_norm(perturbations, math.inf, "linf_dist")
        super().__init__([LossTerm(perturbation)])
        self.terms = []  # it bounds no region
        eps_train = 1.5 * float(perturbation.eps) if eps_train is None else eps_train
        self.eps_train = _checked("eps_train", eps_train, above=0)
        self.relax_from = _checked("relax_from", relax_from, upper=1)
        self.relax_to = _checked("relax_to", relax_to, upper=1)
        if not self.relax_from <= self.relax_to < 1:
            raise InvalidArgumentError(
                f"relax_from={relax_from!r}, relax_to={relax_to!r} must be shares of the run, the"
                " first no larger than the second and both less than 1: the last steps train at"
                " p = inf"
            )
        self.p_start, self.p_end = _checked("p_start", p_start, 1), _checked("p_end", p_end, 1)
        self.lambda_start = _checked("lambda_start", lambda_start)
        self.lambda_end = _checked("lambda_end", lambda_end)
        if bool(self.lambda_start) != bool(self.lambda_end):
            raise InvalidArgumentError(
                f"lambda_start={lambda_start!r}, lambda_end={lambda_end!r}: the weight falls"
                " geometrically; give two positive numbers, or two zeros"
            )
        self.powers_of_two, self.weight = powers_of_two, self.lambda_start

    def advance(self, model: nn.Module, share: float) -> None:
        """Set p and lambda to what they are where a share of the run is done."""
        span = self.relax_to - self.relax_from
        position = 1.0 if share >= self.relax_to else max(0.0, share - self.relax_from) / span
        self.weight = _geometric(self.lambda_start, self.lambda_end, position)
        p = _geometric(self.p_start, self.p_end, position) if position < 1 else math.inf
        if self.powers_of_two and p < math.inf:
            p = 2.0 ** round(math.log2(p))
        set_exponents(model, p)

    def __call__(
        self,
        bounded: BoundedModule,
        x: Tensor,
        y: Tensor,
        eps_scale: float = 1.0,
        generator: Any = None,
    ) -> LossResult:
        """Compute the loss of a clean pass; arguments as of :meth:`MultiNormLoss.__call__`.

        Raises:
            InvalidArgumentError: As :func:`.offered.limit_constant`.
        """
        check_types(bounded, x)
        classes = bounded.output_shape(x).numel()
        check_labels(y, classes, len(x), x.device)
        theta = 2 * self.eps_train * eps_scale * limit_constant(bounded.model)
        logits = bounded.clean_outputs(x)
        margins = margin_matrix(y, classes, x.dtype).matmul(logits.unsqueeze(2)).squeeze(2)
        lowest = margins.amin(1)
        # An untrained radius of 0 leaves the error itself, which has no gradient.
        hinge = ((theta - lowest) / theta).clamp(0, 1) if theta else (lowest <= 0).to(lowest)
        scale = getattr(distance_layers(bounded.model)[-1], "scale", 1.0)
        entropy = F.cross_entropy(scale * logits, y.long(), reduction="none")
        per_example = hinge + self.weight * entropy if self.weight else hinge
        parts = {"hinge": distributed.mean(hinge), "scaled_entropy": distributed.mean(entropy)}
        value = distributed.mean(per_example)
        return LossResult(value, [margins - theta], [per_example], parts, None, logits)


def _geometric(start: float, end: float, position: float) -> float:
    return start * (end / start) ** position if start else 0.0


def _checked(
    name: str, value: Any, lower: float = 0.0, upper: float = math.inf, above: float | None = None
) -> float:
    """Return a finite number of a range, or raise InvalidArgumentError."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and lower <= value <= upper and abs(value) < math.inf and (value != above):
        return float(value)
    least = f"be positive (a hinge of width {above:g} divides by it)" if above is not None else ""
    most = f" and at most {upper:g}" if upper < math.inf else ""
    raise InvalidArgumentError(
        f"{name}={value!r} must {least or f'be a finite number of at least {lower:g}{most}'}"
    )
