"""Branch and bound: domains, their order, and what is learnt from one for the others."""
