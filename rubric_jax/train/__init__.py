"""Training: the optimizer, the step and the loop."""
