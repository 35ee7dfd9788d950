"""Classification metrics: accuracy, calibration error, confusion matrix."""

import numpy as np
import scipy.special
from sklearn import metrics

BINS = 15  # of confidence, as in Guo et al., 2017


def classification(logits, labels):
  """Computes all metrics of logits (N, C) and integer labels (N,).

  Returns:
    A JSON-compatible dict: images; in percent top1, above five classes top5,
    calibration_error and per_class, the top-1 of each class (None of a class
    without images); confusion, counts of predictions (columns) by class (rows).
  """
  classes = range(logits.shape[-1])
  predictions = np.argmax(logits, -1)
  confusion = metrics.confusion_matrix(labels, predictions, labels=classes)
  scores = {
    "images": len(labels),
    "top1": 100 * float(np.count_nonzero(predictions == labels)) / len(labels),
  }
  if len(classes) > 5:
    top5 = metrics.top_k_accuracy_score(labels, logits, k=5, labels=classes)
    scores["top5"] = 100 * top5
  return scores | {
    "calibration_error": calibration_error(logits, labels),
    "per_class": [
      100 * float(row[i] / row.sum()) if row.any() else None
      for i, row in enumerate(confusion)
    ],
    "confusion": confusion.tolist(),
  }


def calibration_error(logits, labels):
  """Expected calibration error in percent (Guo et al., 2017, equation 3)."""
  probabilities = scipy.special.softmax(logits.astype(np.float64), axis=-1)
  confidence = probabilities.max(-1)
  correct = np.argmax(logits, -1) == labels
  bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
  gaps = np.zeros(BINS)
  np.add.at(gaps, bins, correct - confidence)
  return 100 * float(np.abs(gaps).sum()) / len(labels)
