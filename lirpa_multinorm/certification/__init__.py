"""Certification against several sets at once."""

from .cascade import METHODS, CertifySettings, certify
from .metrics import CERTIFIED, FALSIFIED, MISCLASSIFIED, UNKNOWN, Certification

__all__ = ["CERTIFIED", "Certification", "CertifySettings", "FALSIFIED", "METHODS", "MISCLASSIFIED", "UNKNOWN",
           "certify"]
