"""Certification against several sets at once."""

from . import cell_stages, patch_stages  # noqa: F401  (they register their stages)
from .metrics import (
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
    certified_accuracy,
)
from .radii import CertifiedRadii, certified_radii
from .records import read_records
from .run import certify, certify_to, merge_records
from .settings import EVALUATION_ATTACK, EVALUATION_ATTACKS, METHODS, CertifySettings
from .stages import STAGES, OpenPairs, Stage

__all__ = [
    "CERTIFIED",
    "Certification",
    "CertifiedAccuracy",
    "CertifiedRadii",
    "CertifySettings",
    "ERROR",
    "EVALUATION_ATTACK",
    "EVALUATION_ATTACKS",
    "FALSIFIED",
    "METHODS",
    "MISCLASSIFIED",
    "NOT_RUN",
    "OpenPairs",
    "STAGES",
    "STATUSES",
    "Stage",
    "TIMEOUT",
    "UNKNOWN",
    "certified_accuracy",
    "certified_radii",
    "certify",
    "certify_to",
    "merge_records",
    "read_records",
]
