"""Our own verifier of piecewise-linear networks. It knows the model, never a ``BoundedModule``."""
