"""What may go wrong ends in a right run or in one sentence, and nothing else.

Here in a short form; `pytest -m faults` tries all of it for half an hour.
"""

import io
import os
import struct
import zipfile
import zlib

import faults
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from vit_ssl_jax import models
from vit_ssl_jax.data import load, npz, pixels
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import pretrained
from vit_ssl_jax.recipes import schema
from vit_ssl_jax.run import workdir as workdirs

SHORT, FULL = 1, 10
SCALES = [
  pytest.param(SHORT, id="short"),
  pytest.param(FULL, id="full", marks=pytest.mark.faults),
]
scales = pytest.mark.parametrize("scale", SCALES)


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
  return faults.Trials(tmp_path_factory.mktemp("faults"))


def check(trials, function, *arguments):
  """Runs a kind of trials; none may have ended wrong."""
  trials.rows.clear()
  function(*arguments)
  print(*trials.rows, sep="\n")
  assert trials.rows
  for fault, tried, ends in trials.rows:
    assert ends["wrong"] == 0, fault
    assert sum(ends.values()) == tried > 0


@scales
def test_kills(trials, scale):
  count = 3 if scale == SHORT else 50
  killed = trials.kills(count)
  assert sum(killed.values()) >= count
  if scale == FULL:
    assert 4 * killed["while a checkpoint was written"] >= count


@scales
def test_damage(trials, scale):
  """Every kind of file in a workdir, of which a run goes on."""
  check(trials, trials.damage, 4 if scale == SHORT else 200)


@pytest.mark.faults
def test_missing_files(trials):
  check(trials, trials.missing)


@scales
def test_no_room(trials, scale):
  check(trials, trials.writes, 1 if scale == SHORT else 20)


@pytest.mark.faults
def test_long_run(trials):
  """Memory stays as it is, and files do not pile up."""
  memory, files = trials.long_run(20_000)
  assert abs(memory - 1) < 0.02
  assert files < 100


def test_two_at_once(trials):
  check(trials, trials.two_at_once)


def fuzz(count):
  """Hypothesis's settings; it prints the example that fails."""
  return settings(
    max_examples=count,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
  )


NUMBERS = st.one_of(
  st.sampled_from([0, -1, 1, 2, 0.5, 1e-30, 1e30, 10**20]),
  st.sampled_from([float("nan"), float("inf"), -float("inf")]),
  st.integers(),
  st.floats(),
)
ANYTHING = st.one_of(
  NUMBERS,
  st.booleans(),
  st.text(max_size=8),
  st.lists(NUMBERS, max_size=5).map(tuple),
)


@scales
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_configs(stage, scale, make_tiny, tmp_path_factory):
  """Values of any type for any keys: a model and schedules, or a sentence."""
  recipe = make_tiny(stage, "vit")
  keys = sorted(schema.flat(recipe).keys() - {"stage"})
  ends = {"accepted": 0, "said": 0}

  @fuzz(25 * scale)
  @given(st.dictionaries(st.sampled_from(keys), ANYTHING, max_size=3))
  def try_one(changes):
    config = recipe.copy_and_resolve_references()
    for key, value in changes.items():
      try:
        config.update_from_flattened_dict({key: value})
      except (TypeError, ValueError):  # as the command line says it
        return
    folder = tmp_path_factory.mktemp("config") / "run"
    try:
      workdirs.claim(config, folder)
      models.from_config(config, num_classes=0)
      ends["accepted"] += 1
    except UserError:
      ends["said"] += 1
    assert not folder.exists()

  try_one()
  assert min(ends.values()) > 0


def mutate(data, draw):
  """Flips bytes of data, cuts it off, or repeats a part of it."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 6))):
    if data:
      data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
  kind = draw(st.sampled_from(["flips", "cut", "repeat"]))
  at = draw(st.integers(0, len(data)))
  return {
    "flips": bytes(data),
    "cut": bytes(data[:at]),
    "repeat": bytes(data[:at] + data[at // 2 :]),
  }[kind]


@scales
@pytest.mark.parametrize("form", pixels.FORMATS)
def test_images(form, scale):
  image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, form)

  @fuzz(20 * scale)
  @given(st.data())
  def try_one(data):
    try:
      found = pixels.decode(mutate(stream.getvalue(), data.draw), 8, "crop")
      assert found.shape == (8, 8, 3)
    except pixels.BrokenImageError:
      return

  try_one()


@pytest.mark.parametrize("side", [2**13 + 1, 2**16])
def test_an_image_that_is_a_bomb(side):
  """Its header has far more pixels than its bytes; none is decoded."""
  stream = io.BytesIO()
  Image.new("RGB", (1, 1)).save(stream, "PNG")
  data = bytearray(stream.getvalue())
  data[16:24] = struct.pack(">II", side, side)
  data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
  with pytest.raises(pixels.BrokenImageError, match="pixels"):
    pixels.decode(bytes(data), 8, "crop")


@scales
def test_npz_files(scale, tiny_npz, tmp_path):
  path = tiny_npz.removeprefix("npz:")
  with open(path, "rb") as file:
    whole = file.read()

  @fuzz(25 * scale)
  @given(st.data())
  def try_one(data):
    (tmp_path / "x.npz").write_bytes(mutate(whole, data.draw))
    try:
      parts, _ = npz.read(str(tmp_path / "x.npz"), 8, load.Options())
      assert parts["train"].images.shape == (48, 8, 8, 3)
    except UserError:
      return

  try_one()


def test_an_npz_that_is_a_bomb(tmp_path):
  """A terabyte by its header, a few bytes in the file."""
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
    for key in npz.KEYS:
      stream = io.BytesIO()
      shape = (10**6, 1000, 1000) if "images" in key else (10**6,)
      dtype = "|u1" if "images" in key else "<i8"
      header = {"descr": dtype, "fortran_order": False, "shape": shape}
      np.lib.format.write_array_header_1_0(stream, header)
      archive.writestr(f"{key}.npy", stream.getvalue())
  with pytest.raises(UserError, match="train_images cannot be read"):
    npz.read(str(tmp_path / "x.npz"), 8, load.Options())


@scales
@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_weights(form, scale, tmp_path):
  arrays = {"blocks.0.fc.weight": np.ones((4, 3), np.float32)}
  path = tmp_path / f"x.{form}"
  if form == "npz":
    np.savez(path, **arrays)
  else:
    safetensors.numpy.save_file(arrays, path)
  whole = path.read_bytes()

  @fuzz(25 * scale)
  @given(st.data())
  def try_one(data):
    path.write_bytes(mutate(whole, data.draw))
    try:
      assert pretrained.read(path).arrays
    except UserError:
      return

  try_one()


def test_a_byte_of_a_checkpoint(make_workdir):
  """What reads a checkpoint says that it is damaged."""
  workdir = make_workdir("finetune", "vit", ["a", "b"])
  files = (p for p in (workdir / "checkpoints").rglob("*") if p.is_file())
  largest = max(files, key=os.path.getsize)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 0xFF
  largest.write_bytes(data)
  with pytest.raises(UserError, match="checkpoints/7 is damaged"):
    pretrained.read(workdir)
