"""Figures of a classifier's logits, beyond top-1."""

import numpy as np
import scipy.special
from sklearn import metrics

BINS = 15  # of confidence, as in Guo et al., 2017


def classification(logits, labels):
  """All figures of a classifier on a set.

  Args:
    logits: (N, C).
    labels: (N,) integers.

  Returns:
    A dict that JSON can hold: images; top1 and, above five classes, top5;
    calibration_error; per_class, the top-1 of each class, None where it has no
    image; confusion, where row i has the images of class i by what they were
    taken for. All but the counts are in percent.
  """
  classes = logits.shape[-1]
  guess = np.argmax(logits, -1)
  confusion = metrics.confusion_matrix(labels, guess, labels=range(classes))
  found = {
    "images": len(labels),
    "top1": 100 * float(np.count_nonzero(guess == labels)) / len(labels),
  }
  if classes > 5:
    found["top5"] = 100 * metrics.top_k_accuracy_score(
      labels, logits, k=5, labels=range(classes)
    )
  counts = confusion.sum(1)
  return found | {
    "calibration_error": calibration_error(logits, labels),
    "per_class": [
      100 * float(confusion[i, i] / n) if n else None
      for i, n in enumerate(counts)
    ],
    "confusion": confusion.tolist(),
  }


def calibration_error(logits, labels):
  """Expected calibration error in percent (Guo et al., 2017, equation 3).

  Confidence is the largest probability, in `BINS` bins of equal width; the
  error is the mean distance of accuracy and confidence, weighted by images.

  Args:
    logits: (N, C).
    labels: (N,) integers.
  """
  probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
  confidence = probabilities.max(-1)
  correct = np.argmax(logits, -1) == labels
  bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
  apart = np.zeros(BINS)
  np.add.at(apart, bins, correct - confidence)
  return 100 * float(np.abs(apart).sum()) / len(labels)
