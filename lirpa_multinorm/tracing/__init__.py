"""Graphs made of a model: whether they compute its function, and whether they still do."""
