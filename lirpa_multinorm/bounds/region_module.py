"""Bounds of regions: the checked entry to the host's methods and to our own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..errors import InvalidArgumentError, UnsupportedModelError
from ..perturbations import PerturbationLinf, Region
from ..perturbations.geometric import PerturbationGeometric
from ..perturbations.patch import PerturbationPatch
from ..utils.memory import is_out_of_memory
from ..utils.modes import sheltered
from ..verifier.branching.branch_and_bound import BranchSettings
from ..verifier.branching.cells import CellResult, CellSearch, CellSettings
from ..verifier.network import ModelGraph
from ..verifier.patches.search import PatchResult, PatchSettings
from .checks import check_fixed_weights, check_input, check_shape, stacked_specification
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

        A network that is not piecewise linear, or too large to be written out as matrices, is
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
