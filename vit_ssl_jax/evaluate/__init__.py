"""Exact evaluation of a model on a set's test images."""

from vit_ssl_jax.evaluate.accuracy import accuracy
from vit_ssl_jax.evaluate.features import extract, parts, top1
from vit_ssl_jax.evaluate.knn import knn_accuracy

__all__ = ["accuracy", "extract", "knn_accuracy", "parts", "top1"]
