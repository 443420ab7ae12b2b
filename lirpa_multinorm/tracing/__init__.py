"""Whether a graph that was made of a model still says what the model does."""
