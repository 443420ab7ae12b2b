"""Relaxations of ReLUs, and the bounds by backward propagation through them."""
