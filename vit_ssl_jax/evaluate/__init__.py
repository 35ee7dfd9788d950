"""Evaluation on every image exactly once, on any number of devices.

Exports what training stages need; probes and pictures come in on demand.
"""

from vit_ssl_jax.evaluate.accuracy import extract, make_predict, parts, top1
from vit_ssl_jax.evaluate.knn import knn_accuracy, pixels

__all__ = ["extract", "knn_accuracy", "make_predict", "parts", "pixels", "top1"]
