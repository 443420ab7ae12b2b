"""Gradient attacks over perturbation sets."""

from .ascent import maximize
from .objectives import margin_loss
from .pgd import attack_regions, pgd
from .randomness import RowGenerator
from .settings import AttackSettings
from .views import Batched, attack_view, matmul_precision

__all__ = [
    "AttackSettings",
    "Batched",
    "RowGenerator",
    "attack_regions",
    "attack_view",
    "margin_loss",
    "matmul_precision",
    "maximize",
    "pgd",
]
