"""How far floating-point arithmetic may take an output from the exact one."""
