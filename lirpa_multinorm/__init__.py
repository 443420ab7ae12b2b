"""Sound bounds, certified training and certification for several norms at once, on auto_LiRPA.

Everything a user imports is here, or in one of ``data``, ``models``, ``training``, ``errors``,
``report``, ``audit`` and ``abcrown``.
"""

__version__ = "0.1.0"

from . import errors
from .attacks import AttackSettings, pgd
from .bounds import BoundedModule, Bounds, margin_matrix
from .bounds.registration import register, unregister
from .certification import (
    CERTIFIED,
    ERROR,
    FALSIFIED,
    MISCLASSIFIED,
    NOT_RUN,
    STATUSES,
    TIMEOUT,
    UNKNOWN,
    Certification,
    CertifiedAccuracy,
    CertifiedRadii,
    CertifySettings,
    certified_accuracy,
    certified_radii,
    certify,
    certify_to,
    merge_records,
    read_records,
)
from .experiments.presets import load_preset, preset_names
from .losses import LossTerm, MultiNormLoss, SplitTerm, build_loss, register_loss
from .networks import pretrained, pretrained_names
from .perturbations import (
    PerturbationL0,
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    Region,
    register_norm,
)
from .perturbations.geometric import PerturbationGeometric
from .perturbations.patch import PerturbationPatch
from .perturbations.restricted import restricted
from .training import TrainConfig, load_checkpoint, save_checkpoint, train

__all__ = [
    "__version__",
    # sets
    "PerturbationGeometric",
    "PerturbationL0",
    "PerturbationL1Box",
    "PerturbationL2Box",
    "PerturbationLinf",
    "PerturbationLpBox",
    "PerturbationPatch",
    "Region",
    "register_norm",
    "restricted",
    # bounds
    "BoundedModule",
    "Bounds",
    "margin_matrix",
    "register",
    "unregister",
    # attacks
    "AttackSettings",
    "pgd",
    # losses and training
    "LossTerm",
    "MultiNormLoss",
    "SplitTerm",
    "TrainConfig",
    "build_loss",
    "load_checkpoint",
    "load_preset",
    "preset_names",
    "pretrained",
    "pretrained_names",
    "register_loss",
    "save_checkpoint",
    "train",
    # certification
    "CERTIFIED",
    "ERROR",
    "FALSIFIED",
    "MISCLASSIFIED",
    "NOT_RUN",
    "STATUSES",
    "TIMEOUT",
    "UNKNOWN",
    "Certification",
    "CertifiedAccuracy",
    "CertifiedRadii",
    "CertifySettings",
    "certified_accuracy",
    "certified_radii",
    "certify",
    "certify_to",
    "merge_records",
    "read_records",
    # errors
    "errors",
]
