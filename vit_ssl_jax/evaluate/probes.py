"""k-NN and linear probes with raw-pixel and random-init baselines."""

import numpy as np
from sklearn import linear_model, model_selection, pipeline, preprocessing

from vit_ssl_jax import cli
from vit_ssl_jax.evaluate.knn import knn_accuracy, pixels

KINDS = ("knn", "linear")
# Inverse regularisation strengths, of which the best is selected.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SELECTION_IMAGES = 10_000  # at most
LBFGS_STEPS = 300


def probe(kind, network, dataset, batch_size):
  """Probes features of a `model.Network` on a `load.Dataset`, and baselines.

  Returns:
    A JSON-compatible dict: images; in percent top1, raw_pixels (less the set's
    mean) and untrained (features of the network with fresh parameters).
  """
  untrained = network.untrained()
  features_of = {
    "top1": lambda images: network.features(images, batch_size),
    "raw_pixels": lambda images: pixels(images, dataset.mean),
    "untrained": lambda images: untrained.features(images, batch_size),
  }
  scores = {"images": len(dataset.test_labels)}
  with cli.progress_bar(len(features_of), "probe", label=kind) as bar:
    for name, features in features_of.items():
      train = features(dataset.train_images), np.asarray(dataset.train_labels)
      test = features(dataset.test_images), np.asarray(dataset.test_labels)
      if kind == "knn":
        scores[name] = knn_accuracy(*train, *test, len(dataset.classes))
      else:
        scores[name] = linear_accuracy(*train, *test)
      bar.update()
  return scores


def linear_accuracy(train_features, train_labels, test_features, test_labels):
  """Computes the top-1 accuracy of a linear probe in percent.

  Multinomial logistic regression on standardised features (N, D) and (M, D);
  regularisation is selected on a fifth of at most `SELECTION_IMAGES` images.
  """
  order = np.random.default_rng(0).permutation(len(train_labels))
  subset = order[:SELECTION_IMAGES]
  fit, held_out, fit_labels, held_out_labels = model_selection.train_test_split(
    train_features[subset], train_labels[subset], test_size=0.2, random_state=0
  )
  scores = [
    classifier(x).fit(fit, fit_labels).score(held_out, held_out_labels)
    for x in STRENGTHS
  ]
  best = classifier(STRENGTHS[np.argmax(scores)])
  best.fit(train_features, train_labels)
  return 100 * float(best.score(test_features, test_labels))


def classifier(strength):
  return pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=strength, max_iter=LBFGS_STEPS, tol=1e-3),
  )
