"""Linear bounds of ReLUs, and what is propagated backward through them."""
