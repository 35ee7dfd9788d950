"""Programs: they run without the package, and say what they are."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from vit_ssl_jax import models
from vit_ssl_jax.augment import pipelines as views
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import programs

HERE = pathlib.Path(__file__).parent
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
METADATA = {"arch": "vit", "classes": "é, b"}
WITHOUT_PACKAGE = """
import sys
sys.modules.update(dict.fromkeys(["vit_ssl_jax", "flax"]))  # not to be imported
import jax.export, numpy as np
images = np.load("images.npy")
for arch in sys.argv[1:]:
  with open(arch + ".stablehlo", "rb") as file:
    call = jax.export.deserialize(bytearray(file.read())).call
  np.savez(arch + ".npz", one=call(images[:1]), five=call(images))
"""
ELSEWHERE = """
import sys
sys.path[:0] = sys.argv[1:]
import test_interop_programs as tests
for arch in tests.tiny.SIZES:
  print(tests.digest(tests.serialized(arch)))
"""


def build(arch, **sizes):
  sizes = {"image_size": 8, "embed_dim": 8, "num_classes": 5} | sizes
  return models.build(arch, **sizes, **tiny.SIZES[arch])


def random_params(model):
  """Parameters none of which is zero, the same in every process."""
  images = jnp.zeros((1, 8, 8, 3))
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0.1, 0.5, x.shape).astype(np.float32), shapes
  )


def predictor(model):
  """What a caller makes of a model: uint8 images to probabilities."""
  model = model.clone(dtype=jnp.float32)

  def predict(params, images):
    x = views.evaluation_view(images, MEAN, STD)
    y = model.apply({"params": params}, x)
    return jax.nn.softmax(y) if model.num_classes else y

  return predict


def serialized(arch, **sizes):
  model = build(arch, **sizes)
  params = random_params(model)
  return programs.serialize(predictor(model), params, 8)


def digest(data):
  return hashlib.sha256(data).hexdigest()


def python(folder, *args, **variables):
  """Runs Python in a folder, without anything of this folder's."""
  command = [sys.executable, "-I", "-c", *args]
  run = subprocess.run(
    command, cwd=folder, capture_output=True, text=True,
    env=os.environ | variables,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr
  return run.stdout


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def files():
  """The bytes of a program of each architecture."""
  return {arch: serialized(arch) for arch in tiny.SIZES}


def test_probabilities_without_the_package(files, images, tmp_path):
  for arch, data in files.items():
    (tmp_path / f"{arch}.stablehlo").write_bytes(data)
  np.save(tmp_path / "images.npy", images)
  python(tmp_path, WITHOUT_PACKAGE, *files, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
  for arch in files:
    model = build(arch)
    expected = jax.jit(predictor(model))(random_params(model), images)
    assert np.ptp(expected, 0).max() > 1e-2, arch  # images tell
    with np.load(tmp_path / f"{arch}.npz") as given:
      np.testing.assert_allclose(given["one"], expected[:1], 0, 1e-6)
      np.testing.assert_allclose(given["five"], expected, 0, 1e-6)


def test_another_process_writes_the_same_bytes(files, tmp_path):
  # Its strings have other hashes, so that the order of no set may matter.
  root = str(HERE.parent)
  given = python(tmp_path, ELSEWHERE, str(HERE), root).split()
  assert given == [digest(data) for data in files.values()]


def test_this_process_writes_the_same_bytes(files):
  before = jax.config.jax_traceback_in_locations_limit
  assert serialized("vit") == files["vit"]
  assert jax.config.jax_traceback_in_locations_limit == before != 0


def test_no_path_is_in_the_bytes(files):
  folders = [
    HERE.parent,
    pathlib.Path(jax.__file__).parent,
    pathlib.Path.home(),
  ]
  for data in files.values():
    assert b".py" not in data
    for folder in folders:
      assert str(folder).encode() not in data


@pytest.mark.parametrize("platform", programs.PLATFORMS)
def test_every_platform_is_lowered(files, platform):
  exported = jax.export.deserialize(bytearray(files["vit"]))
  assert exported.platforms == programs.PLATFORMS
  assert exported.nr_devices == 1
  assert not exported.disabled_safety_checks
  images = jax.ShapeDtypeStruct((2, 8, 8, 3), np.uint8)
  traced = jax.jit(exported.call).trace(images)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert "stablehlo.dot_general" in text


@pytest.fixture
def written(tmp_path):
  """A program of ViT as `write` writes it."""
  model = build("vit")
  path = tmp_path / "x.stablehlo"
  programs.write(path, predictor(model), random_params(model), 8, METADATA)
  return path


def test_read_gives_what_was_written(written, images):
  assert programs.is_program(written)
  program = programs.read(written)
  assert (program.image_size, program.num_outputs) == (8, 5)
  assert program.metadata == METADATA
  given = program.call(images)
  assert given.dtype == jnp.float32
  np.testing.assert_allclose(np.sum(given, 1), 1, 0, 1e-6)
  assert len(list(written.parent.iterdir())) == 2


def test_parameters_may_lie_on_several_devices(tmp_path):
  mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.sharding.NamedSharding(mesh, jax.P("x"))
  params = jax.device_put(np.ones((4, 3), np.float32), spread)
  path = tmp_path / "x.stablehlo"
  programs.write(
    path, lambda params, images: images.mean((1, 2)) @ params.T, params, 8
  )
  program = programs.read(path)
  assert (program.num_outputs, program.metadata) == (4, {})
  given = program.call(np.full((2, 8, 8, 3), 5, np.uint8))
  np.testing.assert_allclose(given, np.full((2, 4), 15))


@pytest.mark.parametrize(
  "predict",
  [
    lambda params, images: images[:, 0, 0],
    lambda params, images: images / 255,
    lambda params, images: [{"x": images[0, 0, 0] / 255}],
  ],
)
def test_another_function_is_refused(predict):
  with pytest.raises(ValueError, match=r"float32\[b,C\]"):
    programs.serialize(predict, {}, 8)


def test_truncated_and_broken_files_are_refused(written):
  """All bytes are checked: single bits that differ can crash JAX's reader."""
  data = written.read_bytes()
  for size in (0, 99, len(data) - 1):
    written.write_bytes(data[:size])
    with pytest.raises(UserError, match="is truncated or broken"):
      programs.read(written)
  for place in (7, len(data) // 2, len(data) - 1):
    broken = bytearray(data)
    broken[place] ^= 1
    written.write_bytes(broken)
    with pytest.raises(UserError, match="is truncated or broken"):
      programs.read(written)
  programs.beside(written).unlink()
  with pytest.raises(UserError, match=r"there is no .*x\.stablehlo\.json"):
    programs.read(written)


def test_a_program_of_something_else_is_refused(tmp_path):
  floats = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
  exported = jax.export.export(jax.jit(lambda x: x[:, 0, 0]))(floats)
  path = tmp_path / "x.stablehlo"
  for data, words in (
    (bytes(exported.serialize()), r"float32\[4,8,8,3\].*uint8\[b,S,S,3\]"),
    (b"?" * 99, f"JAX {jax.__version__} on cpu, and has to be exported"),
  ):
    path.write_bytes(data)
    about = {"sha256": hashlib.sha256(data).hexdigest()}
    programs.beside(path).write_text(json.dumps(about))
    with pytest.raises(UserError, match=words):
      programs.read(path)
