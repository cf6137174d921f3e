"""Train PyTorch models with Lightning from one Hydra config, on any of three platforms."""

__version__ = "0.1.0"
