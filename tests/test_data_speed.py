"""How long a large folder takes to load, and how much memory."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

COUNT, SIZE, CLASSES, DISTINCT = 100_000, 64, 100, 20
LOAD = """
import json, resource, time
start = time.perf_counter()
from vit_ssl_jax.data import load
at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ready = time.perf_counter()
got = load.load("folder:" + {path!r}, 64, test_fraction=0.1, progress=False)
assert got.train_images.shape == (90_000, 64, 64, 3)
assert len(got.classes) == 100
assert min(got.std) > 0.05
print(json.dumps({{
  "seconds": time.perf_counter() - start,
  "importing": ready - start,
  "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
  "bytes at first": 1024 * at_first}}))
"""


def photographs():
  """The bytes of some JPEGs with large shapes and noise."""
  rng = np.random.default_rng(0)
  for _ in range(DISTINCT):
    coarse = rng.integers(0, 256, (SIZE // 8, SIZE // 8, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize(
      (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(smooth) + rng.normal(0, 10, (SIZE, SIZE, 3))
    file = io.BytesIO()
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=90)
    yield file.getvalue()


@pytest.mark.long
def test_a_hundred_thousand_images_load_within_a_minute(tmp_path):
  root = tmp_path / "photographs"
  for label in range(CLASSES):
    (root / f"{label:03}").mkdir(parents=True)
  files = list(photographs())
  for i in range(COUNT):
    path = root / f"{i % CLASSES:03}" / f"{i:06}.jpg"
    path.write_bytes(files[i % DISTINCT])

  def start():
    done = subprocess.run(
      [sys.executable, "-c", LOAD.format(path=str(root))],
      env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
      cwd=pathlib.Path(__file__).parent.parent,
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(figures, os.getloadavg())
    return figures

  first, second = start(), start()
  decoded = COUNT * SIZE * SIZE * 3
  assert first["seconds"] < 60
  assert first["bytes"] < decoded + 500e6
  assert second["seconds"] < 10
  assert second["bytes"] < decoded + 500e6
