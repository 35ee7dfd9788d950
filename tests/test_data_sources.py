"""A set trains the same from TFDS, from a folder of PNGs and from an npz."""

import jax
import numpy as np
from PIL import Image

from vit_ssl_jax.data.batches import make_source
from vit_ssl_jax.data.load import load
from vit_ssl_jax.parallel import mesh


def export(dataset, folder):
  """Writes a set as PNGs by class and as an npz, each in another order."""
  arrays = {}
  for part in ("train", "test"):
    images = getattr(dataset, f"{part}_images")
    labels = getattr(dataset, f"{part}_labels")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      path = folder / "png" / part / dataset.classes[label] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.asarray(image)).save(path, compress_level=0)
    arrays[f"{part}_images"] = images[::-1]
    arrays[f"{part}_labels"] = labels[::-1]
  np.savez(folder / "set.npz", **arrays)
  return [dataset.name, f"folder:{folder / 'png'}", f"npz:{folder / 'set.npz'}"]


def batches(dataset, placement, count=3):
  """The first batches, fetched in jit as a step does."""
  source = make_source(
    dataset.train_images,
    dataset.train_labels,
    64,
    seed=5,
    placement=placement,
    fingerprints=dataset.train_fingerprints,
    mesh=mesh.one_device_mesh(),
  )
  fetch, items = jax.jit(source.fetch), source.items(0)
  return [
    jax.device_get(fetch(source.arrays, next(items))) for _ in range(count)
  ]


def test_sources_and_placements_give_the_same_batches(tmp_path):
  arguments = {"data_dir": str(tmp_path / "tfds"), "progress": False}
  digits = load("digits", 8, **arguments)
  names = export(digits, tmp_path)
  shares = {"val_fraction": 0.2, "data_fraction": 0.5, "seed": 1}
  first = None
  for source in names:
    dataset = load(source, 8, **arguments, **shares)
    for placement in ("device", "host", "disk"):
      got = batches(dataset, placement)
      first = first or got
      for ours, want in zip(got, first, strict=True):
        np.testing.assert_array_equal(ours["image"], want["image"])
        np.testing.assert_array_equal(ours["label"], want["label"])
  assert load(names[1], 8, **arguments).classes == digits.classes
