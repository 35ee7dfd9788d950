"""A TFDS builder for Stanford Cars, which TFDS's own cannot download any more.

Importing this module imports tensorflow_datasets and registers the builder, so
that `tfds.load("stanford_cars")` finds it.
"""

from typing import ClassVar

import tensorflow_datasets as tfds
from scipy import io

from vit_ssl_jax.cli import UserError
from vit_ssl_jax.data.builders import listing, sources


def _mat(file, field):
  """One variable of a MATLAB file, as lists, dicts, strings and numbers."""
  try:
    with file.open("rb") as stream:
      value = io.loadmat(stream, simplify_cells=True)[field]
  except Exception as error:  # whatever SciPy makes of the damage
    why = getattr(error, "strerror", None) or error
    raise UserError(f"{field} cannot be read from {file}: {why}.") from error
  # A lone element comes without its list.
  return [value] if isinstance(value, dict | str) else list(value)


def _listed(file, path, classes, test=None):
  """(image, label) of a file's annotations, or of those flagged `test`."""
  rows = _mat(file, "annotations")
  try:
    listed = [
      # Classes count from 1.
      (row[path].split("/")[-1], int(row["class"]) - 1)
      for row in rows
      if test is None or row["test"] == test
    ]
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f"The annotations of {file} lack {path}, class or test."
    ) from error
  strange = [image for image, label in listed if not 0 <= label < len(classes)]
  listing.refuse(file, "gives no class to the image", strange)
  return listed


def _two_folders(train, test, devkit, test_file):
  """The file of the classes, them, and for each split its folder and images."""
  names = devkit / "cars_meta.mat"
  classes = _mat(names, "class_names")
  train_file = devkit / "cars_train_annos.mat"
  return (
    names,
    classes,
    {
      "train": (train, _listed(train_file, "fname", classes)),
      "test": (test, _listed(test_file, "fname", classes)),
    },
  )


def _one_folder(folder, file):
  """The same of the other release."""
  classes = _mat(file, "class_names")
  return (
    file,
    classes,
    {
      split: (folder, _listed(file, "relative_im_path", classes, test))
      for split, test in (("train", 0), ("test", 1))
    },
  )


class StanfordCars(tfds.core.GeneratorBasedBuilder):
  """16,185 photographs of cars of 196 makes, models and years.

  Train and test are the official ones. Either official release will do: two
  folders of images and a devkit, or one folder and cars_annos.mat, which is
  taken where both are; they name the images differently, which changes their
  order. Files are stored as they are; the grey ones among them come out as RGB.

  Source: Krause, Stark, Deng and Fei-Fei, "3D Object Representations for
  Fine-Grained Categorization", 2013; no official address answers any more.
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
  # Sizes and SHA-256 as TFDS's cars196 has them, MD5 as in earlier readers.
  ARCHIVES = (
    sources.Archive(
      name="cars_train.tgz",
      digest="sha256:"
      "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
      folder="cars_train",
      size=979_269_282,
    ),
    sources.Archive(
      name="cars_test.tgz",
      digest="sha256:"
      "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
      folder="cars_test",
      size=977_350_468,
    ),
    sources.Archive(
      name="car_devkit.tgz",
      digest="sha256:"
      "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
      folder="devkit",
      size=330_960,
    ),
    sources.Archive(
      name="cars_test_annos_withlabels.mat",
      digest="sha256:"
      "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
      size=185_758,
    ),
  )
  JOINT_ARCHIVES = (
    sources.Archive(
      name="car_ims.tgz",
      digest="md5:d5c8f0aa497503f355e17dc7886c3f14",
      folder="car_ims",
    ),
    sources.Archive(
      name="cars_annos.mat",
      digest="md5:b407c6086d669747186bd1d764ff9dbc",
    ),
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "cars_train.tgz, cars_test.tgz and car_devkit.tgz, or their folders "
    "cars_train, cars_test and devkit, with cars_test_annos_withlabels.mat; or "
    "car_ims.tgz, or its folder car_ims, with cars_annos.mat."
  )
  CLASSES = 196
  PUBLISHED: ClassVar[dict[str, int]] = {"train": 8_144, "test": 8_041}

  def _info(self):
    return self.dataset_info_from_configs(
      description="Stanford Cars: 196 classes of make, model and year.",
      homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(num_classes=self.CLASSES),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager):
    if sources.present(self.JOINT_ARCHIVES[0], dl_manager):
      archives, read = self.JOINT_ARCHIVES, _one_folder
    else:
      archives, read = self.ARCHIVES, _two_folders
    found = sources.collect(
      self.name,
      archives,
      dl_manager,
      " or, of the other release, car_ims.tgz and cars_annos.mat",
    )
    names, classes, splits = read(*found)
    listing.check_classes(names, len({*classes}), self.CLASSES)
    for split, (folder, listed) in splits.items():
      lacking = {image for image, _ in listed} - {
        *listing.names(folder, ".jpg")
      }
      listing.refuse(folder, "lacks the annotated image", lacking)
      listing.check_count(folder, split, len(listed), self.PUBLISHED[split])
    self.info.features["label"].names = classes
    return {
      split: self._generate_examples(folder, listed)
      for split, (folder, listed) in splits.items()
    }

  def _generate_examples(self, root, listed):
    return listing.examples(root, listed)
