"""A linear probe: multinomial logistic regression on frozen features."""

import numpy as np
from sklearn import linear_model, model_selection, pipeline, preprocessing

# Inverse strengths of regularisation, of which one is chosen.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MOST = 10_000  # images by which it is chosen
STEPS = 300  # of L-BFGS


def linear_accuracy(train_features, train_labels, test_features, test_labels):
  """Top-1 of a linear classifier in percent.

  Features are standardised. The strength of regularisation is the best one on
  a fifth of the training images; then all of them are used.

  Args:
    train_features: (N, D).
    train_labels: (N,) integers.
    test_features: (M, D).
    test_labels: (M,) integers.

  Returns:
    The top-1, a float.
  """
  some = np.random.default_rng(0).permutation(len(train_labels))[:MOST]
  part = model_selection.train_test_split(
    *(train_features[some], train_labels[some]),
    test_size=0.2,
    random_state=0,
  )
  fit, held, fit_labels, held_labels = part
  found = {
    strength: probe(strength).fit(fit, fit_labels).score(held, held_labels)
    for strength in STRENGTHS
  }
  best = max(found, key=found.get)
  final = probe(best).fit(train_features, train_labels)
  return 100 * float(final.score(test_features, test_labels))


def probe(strength):
  return pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=strength, max_iter=STEPS, tol=1e-3),
  )
