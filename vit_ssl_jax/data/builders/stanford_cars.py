"""TFDS builder for Stanford Cars, which TFDS's own can no longer download."""

from typing import ClassVar

from scipy import io

from vit_ssl_jax.data.builders import base
from vit_ssl_jax.errors import UserError


class StanfordCars(base.Builder):
  """16,185 photographs of cars of 196 makes, models and years.

  Train and test are the official ones. Either official release will do: two
  image folders and a devkit, or one image folder and cars_annos.mat, which is
  preferred; their images have other names and so another order.

  Source: Krause, Stark, Deng and Fei-Fei, "3D Object Representations for
  Fine-Grained Categorization", 2013; no official address answers any more.
  """

  HOMEPAGE = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
  CLASSES = 196
  PUBLISHED: ClassVar[dict[str, int]] = {"train": 8_144, "test": 8_041}
  ARCHIVES: ClassVar[dict[str, str]] = {
    "cars_train.tgz": "cars_train",
    "cars_test.tgz": "cars_test",
    "car_devkit.tgz": "devkit",
    "cars_test_annos_withlabels.mat": "",
  }
  JOINT_ARCHIVES: ClassVar[dict[str, str]] = {
    "car_ims.tgz": "car_ims",
    "cars_annos.mat": "",
  }

  def find(self, manager):
    place = manager.download_dir / "manual"
    joint = base.present(place, "car_ims.tgz", self.JOINT_ARCHIVES)
    paths = base.collect(
      self,
      manager,
      self.JOINT_ARCHIVES if joint else self.ARCHIVES,
      gone=True,
      instead=" or, of the other release, car_ims.tgz and cars_annos.mat",
    )
    if joint:
      folder, file = paths
      names = variable(file, "class_names")
      return names, {
        split: (folder, listed(file, "relative_im_path", names, test))
        for split, test in (("train", 0), ("test", 1))
      }
    train, test, devkit, test_file = paths
    names = variable(devkit / "cars_meta.mat", "class_names")
    train_file = devkit / "cars_train_annos.mat"
    return names, {
      "train": (train, listed(train_file, "fname", names)),
      "test": (test, listed(test_file, "fname", names)),
    }


def listed(file, path, names, test=None):
  """(image, label) of a file's annotations, or of those flagged `test`."""
  rows = variable(file, "annotations")
  try:
    images = [
      # Classes count from 1.
      (row[path].split("/")[-1], int(row["class"]) - 1)
      for row in rows
      if test is None or row["test"] == test
    ]
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f"the annotations of {file} lack {path}, class or test"
    ) from error
  unknown = [image for image, label in images if not 0 <= label < len(names)]
  base.refuse(file, "gives no class to the image", unknown)
  return images


def variable(file, name):
  """A variable of a MATLAB file, as lists, dicts, strings and numbers."""
  try:
    with file.open("rb") as stream:
      value = io.loadmat(stream, simplify_cells=True)[name]
  except Exception as error:  # SciPy raises errors of many types
    why = getattr(error, "strerror", None) or error
    raise UserError(f"{name} cannot be read from {file}: {why}") from error
  # A single element comes without its list.
  return [value] if isinstance(value, dict | str) else list(value)
