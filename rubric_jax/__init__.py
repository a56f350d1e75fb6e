"""Visual preference optimization with rubric rewards, in JAX."""

import os

# transformers serves tokenizers and processors here; its advice to install torch is noise.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
