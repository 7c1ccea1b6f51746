"""dlm: training language models by masked and uniform discrete diffusion."""

__version__ = "0.1.0"
