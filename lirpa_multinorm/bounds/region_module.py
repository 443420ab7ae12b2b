"""Bounds of regions: the checked entry to the host's methods and to our own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, NaNBoundError, UnsupportedModelError
from ..perturbations import PerturbationLinf, PerturbationLpBox, Region
from ..perturbations.geometric import PerturbationGeometric
from ..perturbations.patch import PerturbationPatch
from ..utils.memory import is_out_of_memory
from ..utils.modes import sheltered
from ..verifier.branching.branch_and_bound import BranchSettings
from ..verifier.branching.cells import CellResult, CellSearch, CellSettings
from ..verifier.network import ModelGraph
from ..verifier.patches.offered import offered_patch_bounds
from ..verifier.patches.search import PatchResult, PatchSettings
from .checks import (
    check_fixed_weights,
    check_input,
    check_shape,
    checked_norms,
    stacked_specification,
)
from .methods import VERIFIER, method_of
from .patch_places import bounds_by_place
from .result import Bounds
from .routes import RoutedModule


class RegionModule(RoutedModule):
    """A module that bounds regions, each a set around centres of its own.

    Args:
        model: The network.
        arguments: The host's further constructor arguments.
    """

    @sheltered
    def compute_region_bounds(
        self,
        regions: Sequence[Region],
        C: None | Tensor | Sequence = None,
        method: str = "IBP",
        **kwargs,
    ) -> list[Bounds]:
        """Bound the model's outputs on sets, each with its centres, stacked into a batch.

        Args:
            regions: (centre, set) pairs; the centres may differ in batch size.
            C: A specification (B, S, K) for all regions, a list with one per region, or None.
            method: As in :meth:`compute_bounds`.
            **kwargs: ``bound_lower``, ``bound_upper``, ``final_node_name``; Sparse-CROWN and
                SDP-CROWN also take ``enough``, a value: they stop improving bounds that are above
                it, and all bounds of an example where one of them does not get there.

        Returns:
            A :class:`~lirpa_multinorm.bounds.Bounds` per region: it unpacks as (lb, ub), and its
            ``intermediate`` holds the intermediate bounds.
        """
        regions = [Region(*region) for region in regions]
        if not regions:
            raise InvalidArgumentError("regions is empty; give at least one (centre, set) pair")
        chosen = method_of(method)
        unknown = set(kwargs) - {"bound_lower", "bound_upper"} - chosen.options
        if unknown:
            raise InvalidArgumentError(
                f"{', '.join(sorted(unknown))}: not supported by {chosen.name} together with the "
                "module's sets; pass x as a BoundedTensor with its own perturbation to reach "
                "the host's call"
            )
        weight = self._weight()
        for region in regions:
            check_input(region.center, weight)
            region.perturbation.check_input(region.center)
            check_shape(region.center, regions[0].center)
        with self._released_when_full():
            if chosen.engine == VERIFIER:
                return self._bounds_by_verifier(regions, C, chosen.name, **kwargs)
            try:
                return self._bounds_by_host(regions, C, chosen.name, **kwargs)
            except UnsupportedModelError as error:
                inner = kwargs.get("final_node_name") is not None
                if inner or self._shrunk or self.model.training or is_out_of_memory(error):
                    raise
                return self._bounds_instead(error, regions, C, chosen.name, **kwargs)

    @sheltered
    def model_graph(self, x: Tensor) -> ModelGraph:
        """Return the model as affine operators and ReLUs, for inputs like x (B, ...).

        Raises:
            UnsupportedModelError: The model is not piecewise linear.
        """
        return self._verified_network(x).graph

    @sheltered
    def lipschitz_constants(
        self,
        x: Tensor,
        perturbation: PerturbationLpBox | None = None,
        norm_in: float = 2,
        norm_out: float = 2,
        C: Tensor | None = None,
    ) -> Tensor:
        """Return upper bounds of the Lipschitz constants of ``C f``, on sets or everywhere.

        ``||C f(a) - C f(b)||_out <= L ||a - b||_in`` for all inputs a and b in the set around x.

        Args:
            x: Inputs, (B, ...).
            perturbation: The set around each; None: the constants of the whole input space.
            norm_in: The norm of the input's move: 1, 2 or inf.
            norm_out: The norm of the outputs' move: 1, 2 or inf.
            C: Specification (B, S, K); None: the outputs themselves.

        Returns:
            L, (B,), in float64 and rounded up.

        Raises:
            InvalidArgumentError: A norm is not 1, 2 or inf.
            UnsupportedModelError: The model is not piecewise linear; the message names the
                operator.
            NaNBoundError: A constant is infinite or NaN.

        Source: see :func:`~lirpa_multinorm.verifier.lipschitz.local_constants.\
local_lipschitz_constants`.

        Example:
            >>> from lirpa_multinorm import BoundedModule
            >>> layer = torch.nn.Linear(2, 2)
            >>> _ = layer.weight.data.copy_(torch.tensor([[3., 0.], [0., 4.]]))
            >>> constants = BoundedModule(layer).lipschitz_constants(torch.zeros(1, 2))
            >>> [round(constant, 4) for constant in constants.tolist()]
            [4.0]
        """
        norms = checked_norms(norm_in, norm_out)
        check_input(x, self._weight())
        if perturbation is not None:
            perturbation.check_input(x)
        check_fixed_weights(self.model, "Lipschitz constants")
        self._verified_network(x)
        region = None if perturbation is None else Region(x, perturbation)
        if C is None:
            C = self._identity([Region(x, PerturbationLinf(0.0))])[0]
        constants = self._verifier.lipschitz_constants(x, region, C.to(x), norms)
        if not bool(torch.isfinite(constants).all()):
            raise NaNBoundError(
                "a Lipschitz constant is infinite or NaN; check the model's weights for values "
                "that are not finite or too large"
            )
        return constants

    @sheltered
    def bound_transforms(
        self,
        x: Tensor,
        perturbation: PerturbationGeometric,
        C: Tensor,
        enough: Tensor,
        deadline: float = math.inf,
        settings: CellSettings = CellSettings(),
    ) -> CellResult:
        """Bound ``C f`` on all transforms of images, by splitting the transforms' parameters.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            perturbation: The transforms.
            C: Specification (B, S, K).
            enough: What bounds must exceed for a search to end, (B, S); -inf: the row is not asked.
            deadline: Value of ``time.perf_counter()`` at which to stop.
            settings: Of the search.

        Returns:
            Bounds, counterexamples, and the work that they took.

        Raises:
            UnsupportedModelError: Something in the network is not piecewise linear.
        """
        check_input(x, self._weight())
        perturbation.check_input(x)
        check_fixed_weights(self.model, "splitting transforms")
        with self._released_when_full():
            network = self._verified_network(x)
            cells = perturbation.cells(x)
            search = CellSearch(network, x, C, enough, cells, perturbation.active, settings)
            return search.run(deadline)

    @sheltered
    def bound_patches(
        self,
        x: Tensor,
        perturbation: PerturbationPatch,
        C: Tensor,
        enough: Tensor,
        deadline: float = math.inf,
        settings: PatchSettings = PatchSettings(),
    ) -> PatchResult:
        """Bound ``C f`` on images with a patch at any place.

        A network that offers bounds for patches, as :class:`.DoubleMasking` does, is bounded by
        these. One that is not piecewise linear, or too large to be written out as matrices, is
        bounded place by place by IBP of the whole image.

        Args:
            x: Images in [0, 1], (B, C, H, W).
            perturbation: The patches.
            C: Specification (B, S, K).
            enough: What bounds must exceed for a place to be proved, (B, S); -inf: the row is not
                asked.
            deadline: Value of ``time.perf_counter()`` at which to stop.
            settings: Of the search; with ``every_place`` the map of places is complete.

        Returns:
            Bounds over all places and at each, which places are proved, and the work it took.
        """
        check_input(x, self._weight())
        perturbation.check_input(x)
        stacked_specification(C, [Region(x, PerturbationLinf(0.0))], None)
        check_fixed_weights(self.model, "bounding patches")
        size = perturbation.height, perturbation.width
        with self._released_when_full():
            offered = offered_patch_bounds(self.model, x, size, C, enough)
            if offered is not None:
                return offered
            try:
                self._verified_network(x)
                return self._verifier.bound_patches(x, size, C, enough, deadline, settings)
            except UnsupportedModelError as error:
                if is_out_of_memory(error):
                    raise
        return bounds_by_place(self, x, perturbation, C, enough, deadline, settings.every_place)

    @sheltered
    def branch_and_bound(
        self,
        region: Region,
        C: Tensor,
        deadline: float = math.inf,
        settings: BranchSettings = BranchSettings(),
    ) -> Tensor:
        """Prove ``C f(x) > 0`` on a set around one input by splitting ReLUs.

        See :mod:`.branch_and_bound`.

        Args:
            region: (centre, set), one centre.
            C: Specification (S, K).
            deadline: Value of ``time.perf_counter()`` at which to stop; what is returned is sound
                at any time.
            settings: Of the search.

        Returns:
            Lower bounds (S,): positive where proved.

        Raises:
            UnsupportedModelError: Something in the network is not piecewise linear.
        """
        check_input(region.center, self._weight())
        region.perturbation.check_input(region.center)
        check_fixed_weights(self.model, "branch and bound")
        with self._released_when_full():
            single = self._verified_network(region.center).single
            lower = self._verifier.branch_and_bound(region, C, deadline, settings)
        self._check_contained(
            [region.center], C.unsqueeze(0), lower.unsqueeze(0), None, "branch and bound", single
        )
        return lower
