"""lirpa-multinorm.

Sound bounds, certified training and certification for several norms at once, on auto_LiRPA.
"""

__version__ = "0.1.0"

from .attacks import AttackSettings, pgd
from .bounds import BoundedModule, margin_matrix
from .bounds.registration import register, unregister
from .certification import (
    Certification,
    CertifiedAccuracy,
    CertifySettings,
    certified_accuracy,
    certify,
    certify_to,
    merge_records,
    read_records,
)
from .losses import LossTerm, MultiNormLoss, build_loss, register_loss
from .perturbations import (
    PerturbationL1Box,
    PerturbationL2Box,
    PerturbationLinf,
    PerturbationLpBox,
    Region,
)

__all__ = [
    "AttackSettings",
    "BoundedModule",
    "LossTerm",
    "Certification",
    "CertifiedAccuracy",
    "CertifySettings",
    "MultiNormLoss",
    "PerturbationL1Box",
    "PerturbationL2Box",
    "PerturbationLinf",
    "PerturbationLpBox",
    "Region",
    "build_loss",
    "certified_accuracy",
    "certify",
    "certify_to",
    "margin_matrix",
    "merge_records",
    "pgd",
    "read_records",
    "register",
    "register_loss",
    "unregister",
    "__version__",
]
