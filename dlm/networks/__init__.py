"""Backbones: tokens in, hidden states out; the head belongs to the loss and to the sampler."""

from dlm.networks.dit import DiT

__all__ = ["DiT"]
