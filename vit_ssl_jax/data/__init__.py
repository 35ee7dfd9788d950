"""Sets of labelled images as arrays, and the batches drawn from them.

Importing this package imports no TensorFlow, and neither does an `npz:` set or
a TFDS set that was decoded before.
"""

from vit_ssl_jax.data.batches import (
  Source,
  make_source,
  order,
  padded_batches,
  steps_per_epoch,
)
from vit_ssl_jax.data.cache import in_turn
from vit_ssl_jax.data.load import Dataset, load

__all__ = [
  "Dataset",
  "Source",
  "in_turn",
  "load",
  "make_source",
  "order",
  "padded_batches",
  "steps_per_epoch",
]
