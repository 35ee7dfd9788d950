"""A TFDS builder for scikit-learn's handwritten digits; downloads nothing."""

import numpy as np
import tensorflow_datasets as tfds

TEST_IMAGES = 360
SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,797 grey 8×8 digits: 1,437 to train on and 360 to test, stratified."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: dict[str, str] = {"1.0.0": "First release."}  # noqa: RUF012

  def _info(self):
    return self.dataset_info_from_configs(
      description="Handwritten digits of 43 people, as in scikit-learn.",
      homepage="https://doi.org/10.24432/C50P49",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
          "label": tfds.features.ClassLabel(names=[str(i) for i in range(10)]),
        }
      ),
      supervised_keys=("image", "label"),
    )

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
    # Ink is counted from 0 to 16.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return {
      "train": self._generate_examples(images, digits.target, train),
      "test": self._generate_examples(images, digits.target, test),
    }

  def _generate_examples(self, images, labels, chosen):
    for i in sorted(chosen.tolist()):
      yield i, {"image": images[i], "label": int(labels[i])}
