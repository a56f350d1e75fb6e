"""Visual preference optimization with rubric rewards, in JAX."""

__version__ = "0.1.0"
