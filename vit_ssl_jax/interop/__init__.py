"""Parameters under other frameworks' names and layouts."""

from vit_ssl_jax.interop.reference import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
