"""The one list of data sets, and what is made of it."""

import pathlib
import subprocess
import sys

import pytest

from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
NAMES = list(registry.SETS)


def row(name):
  """A set's row in the table of docs/data.md."""
  known = registry.SETS[name]
  counts = known.train_images, known.test_images, known.classes
  cells = [f"`{name}`", *(f"{count:,}" for count in counts)]
  return f"| {' | '.join([*cells, str(known.image_size), known.source])} |"


def test_the_manual_has_every_set():
  lines = (ROOT / "docs" / "data.md").read_text().splitlines()
  start = lines.index(row(NAMES[0]))
  assert lines[start : start + len(NAMES)] == [row(name) for name in NAMES]
  assert not lines[start + len(NAMES)]


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_whole(name):
  known = registry.get(name)
  assert known is registry.SETS[name]
  assert known.autoaugment in ("", "cifar", "svhn", "imagenet")
  assert known.resize in ("crop", "squash")
  assert len(known.mean) == len(known.std)


def test_names_of_ones_own_and_of_nothing():
  for name in ("npz:/a.npz", "folder:/a"):
    assert registry.get(name) is registry.OWN
  with pytest.raises(UserError, match="did you mean 'cifar10'"):
    registry.get("cifar11")


def test_reading_it_imports_neither_jax_nor_tensorflow():
  code = (
    "import sys; from vit_ssl_jax.data import registry;"
    "assert not {'jax', 'numpy', 'tensorflow'} & {*sys.modules}"
  )
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
