"""Exact evaluation: every image counts once, on any number of devices."""

from vit_ssl_jax.evaluate.accuracy import extract, make_predict, parts, top1
from vit_ssl_jax.evaluate.knn import knn_accuracy, pixels

__all__ = ["extract", "knn_accuracy", "make_predict", "parts", "pixels", "top1"]
