"""Backbones: tokens in, hidden states out; the head belongs to the loss and to the sampler."""

from dlm.networks.classifier import TextClassifier
from dlm.networks.dit import DiT

__all__ = ["DiT", "TextClassifier"]
