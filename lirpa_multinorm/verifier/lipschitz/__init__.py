"""Lipschitz constants: upper bounds for certificates, estimates for training."""
