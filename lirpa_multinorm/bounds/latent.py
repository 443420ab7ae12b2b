"""The last layers of a network for TAPS, and IBP's box in the latent space before them."""

from __future__ import annotations

from torch import Tensor

from .. import host
from ..errors import InvalidArgumentError, UnsupportedModelError
from ..utils.modes import sheltered, tensor_float_32
from .traced import TracedModule

NO_INTERVALS = "method: no interval bounds are at hand; call compute_region_bounds by IBP first"


class LatentClassifier:
    """The last layers of a traced network, behind a node that every path passes (the cut).

    Args:
        module: The traced module.
        layers: Number of activation layers (ReLUs) behind the cut. Where skip connections allow no
            cut with this number, it is the last cut with more.

    Raises:
        InvalidArgumentError: There is no such cut, or the last bounds were not by IBP.
        UnsupportedModelError: The graph holds the number of inputs.

    Source: Mao et al. 2023 (TAPS), section 3: the network as a feature extractor and a classifier.
    """

    def __init__(self, module: TracedModule, layers: int) -> None:
        if not module.holds_intervals:
            raise InvalidArgumentError(NO_INTERVALS)
        if module._fixed_batch is not None:
            raise UnsupportedModelError(
                "model: its graph holds the number of inputs (x.size(0) or len(x) in its "
                "forward?), and a part of it cannot be run for another one; use -1 or "
                "flatten(1) instead"
            )
        cuts = host.latent_nodes(module)
        fitting = [node for node, behind in cuts if behind >= layers]
        if not fitting:
            most = f"use at most {cuts[0][1]}" if cuts else "use bounding='IBP'"
            raise InvalidArgumentError(
                f"layers={layers}: the network has no place with so many activation layers "
                f"behind it, and one before it, that every path passes; {most}"
            )
        self._module, self._nodes = module, host.nodes_behind(module, fitting[-1])

    def box(self, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return (lower, upper) at the cut, from the last ``compute_region_bounds`` call by IBP.

        Args:
            rows: The examples among those of the stacked regions.
        """
        lower, upper = host.node_interval(self._nodes[0])
        return lower[rows], upper[rows]

    @sheltered
    def outputs(self, points: Tensor) -> Tensor:
        """Return the network's outputs (N, K) for values (N, ...) at the cut.

        In training mode BatchNorm normalises by the statistics of the last clean pass, as the
        bounds do.
        """
        with tensor_float_32(False):
            return host.run_behind(self._module, self._nodes, points)
