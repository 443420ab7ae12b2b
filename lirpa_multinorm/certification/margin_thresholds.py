"""The thresholds that bounds of margins must exceed to be certificates in spite of rounding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..bounds import BoundedModule
from ..errors import UnsupportedModelError
from ..perturbations import Region
from ..perturbations.described import AnySet
from ..perturbations.patch import PerturbationPatch
from ..perturbations.split import SplitPerturbation
from ..utils.memory import is_out_of_memory
from ..utils.modes import evaluating, tensor_float_32
from ..verifier.patches.offered import offering_layer
from ..verifier.rounding.errors import RoundingErrors

#: Units in the last place that a margin must have where the rounding errors have no bound.
_GENEROUS = 1000
_PARTS = 8  # parts of a set whose errors are bounded at once


class MarginThresholds:
    """The values that lower bounds of margins must exceed, from the outputs' rounding errors.

    Args:
        bounded: The network.
        classes: K.
        rounding: What a certificate must withstand; see
            :class:`~lirpa_multinorm.certification.CertifySettings`.
        sets: The sets around all images.
        x: The images, (n, ...); the first is taken to see whether the errors can be bounded.

    Attributes:
        rounding: What certificates do withstand: the argument, or "not bounded", with a warning.
    """

    def __init__(
        self, bounded: BoundedModule, classes: int, rounding: str, sets: Sequence[AnySet], x: Tensor
    ) -> None:
        self._bounded, self._classes = bounded, classes
        self._errors = RoundingErrors(bounded, rounding == "probable")
        self.rounding = rounding
        if rounding != "ignored" and not self._can_bound(sets, x):
            self.rounding = "not bounded"

    def _can_bound(self, sets: Sequence[AnySet], x: Tensor) -> bool:
        """Whether the rounding errors of the network have bounds; if not, warn."""
        try:
            with evaluating(self._bounded), tensor_float_32(False):
                first = torch.zeros(1, dtype=torch.long, device=x.device)
                for perturbation in sets:
                    if self._is_offered(perturbation):
                        continue
                    part = _enclosures(x[:1], perturbation.of_images(first, x))[:1]
                    self._errors.of(part)
        except UnsupportedModelError as error:
            if is_out_of_memory(error):
                raise
            warnings.warn(
                f"rounding errors are not bounded ({error}): a certificate then needs a margin of "
                f"{_GENEROUS} units in the last place of the largest output",
                stacklevel=5,
            )
            return False
        return True

    def of(self, center: Tensor, perturbation: AnySet, labels: Tensor) -> Tensor:
        """Return the thresholds of the margins ``f_y - f_k``, (b, K), in float64.

        Args:
            center: Images, shape (b, ...).
            perturbation: The set around them.
            labels: Their labels, shape (b,).
        """
        error = self._output_errors(center, perturbation).double()
        # Twice: for the network as it runs, and for the bound.
        return 2 * (error + error.gather(1, labels.unsqueeze(1)))

    def _output_errors(self, center: Tensor, perturbation: AnySet) -> Tensor:
        """Return how far each output may be from its exact value on a set, (b, K)."""
        if self.rounding == "ignored":
            return center.new_zeros(len(center), self._classes)
        if self.rounding == "not bounded" or self._is_offered(perturbation):
            logits = self._bounded.model(center).detach().flatten(1)
            unit = torch.finfo(logits.dtype).eps / 2
            largest = logits.abs().amax(1, keepdim=True)
            return (largest * (_GENEROUS * unit / 4)).expand_as(logits)
        # What holds on every part of a set holds on the set.
        parts = _enclosures(center, perturbation)
        groups = [parts[start : start + _PARTS] for start in range(0, len(parts), _PARTS)]
        errors = torch.cat([self._errors.of(group) for group in groups])
        return errors.unflatten(0, (len(parts), len(center))).amax(0)

    def _is_offered(self, perturbation: AnySet) -> bool:
        """Return whether the model offers bounds: what a patch leaves is the same bit for bit."""
        layer = offering_layer(self._bounded.model)
        return isinstance(perturbation, PerturbationPatch) and layer is not None


def _enclosures(center: Tensor, perturbation: AnySet) -> list[Region]:
    """Return balls or boxes whose union holds a set."""
    if isinstance(perturbation, SplitPerturbation):
        return perturbation.enclosures(center)
    return [Region(center, perturbation)]
