"""The stages of a certification: those of its settings, and one for each kind of set without."""

from __future__ import annotations

from collections.abc import Sequence

from ..perturbations.described import AnySet
from ..perturbations.geometric import PerturbationGeometric
from ..perturbations.patch import PerturbationPatch
from .cell_stages import SPLITTING
from .patch_stages import PATCHES
from .settings import CertifySettings
from .stages import STAGES, Stage, stage_of

#: The stage of each kind of set that the default methods do not take.
_DEFAULTS = {PerturbationGeometric: SPLITTING, PerturbationPatch: PATCHES}


def stages_of(settings: CertifySettings, sets: Sequence[AnySet]) -> list[Stage]:
    """Return the stages in order; a kind of set that no method takes gets its own."""
    stages = [stage_of(method) for method in settings.methods]
    for kind, name in _DEFAULTS.items():
        if any(isinstance(perturbation, kind) for perturbation in sets) and not any(
            issubclass(kind, stage.takes) for stage in stages
        ):
            stages.append(STAGES[name])
    return stages
