"""Gradient attacks over perturbation sets."""

from .pgd import AttackSettings, margin_loss, maximize, pgd

__all__ = ["AttackSettings", "margin_loss", "maximize", "pgd"]
