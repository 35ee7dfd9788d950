"""Top-1 accuracy."""

import numpy as np


def accuracy(logits, labels):
  """The share of images whose largest logit is their label's, in percent.

  Args:
    logits: (N, C).
    labels: (N,) integers.

  Returns:
    A float from 0 to 100.
  """
  correct = np.argmax(logits, axis=-1) == labels
  return 100 * float(np.count_nonzero(correct)) / len(labels)
