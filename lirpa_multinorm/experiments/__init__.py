"""Comparisons of training methods, and recipes by name."""
