"""Branch and bound: domains, their order, and output constraints."""
