"""Moments of an (N, P) matrix of gradients in one read: what Γ and its error bar are made of."""

from .op import GammaMoments, gamma_moments

__all__ = ["GammaMoments", "gamma_moments"]
