"""TFDS builder for scikit-learn's handwritten digits; downloads nothing."""

import numpy as np

from vit_ssl_jax.data.builders import base

TEST_IMAGES = 360
SPLIT_SEED = 0


class Digits(base.Builder):
  """1,797 grey 8×8 digits of 43 people: 1,437 to train on and 360 to test.

  The stratified split is this project's own.

  Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits",
  1998; scikit-learn has its test images.
  """

  HOMEPAGE = "https://doi.org/10.24432/C50P49"
  SHAPE = (8, 8, 1)
  CLASSES = 10

  def _split_generators(self, dl_manager):
    del dl_manager  # the images come with scikit-learn
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    train, test = model_selection.train_test_split(
      np.arange(len(digits.target)),
      test_size=TEST_IMAGES,
      stratify=digits.target,
      random_state=SPLIT_SEED,
    )
    # Levels are from 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return {
      "train": self._generate_examples(images, digits.target, train),
      "test": self._generate_examples(images, digits.target, test),
    }

  def _generate_examples(self, images, labels, rows):
    for i in sorted(rows.tolist()):
      yield i, {"image": images[i], "label": int(labels[i])}
