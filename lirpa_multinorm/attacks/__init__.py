"""Gradient attacks over perturbation sets."""

from .pgd import AttackSettings, attack_regions, margin_loss, maximize, pgd

__all__ = ["AttackSettings", "attack_regions", "margin_loss", "maximize", "pgd"]
