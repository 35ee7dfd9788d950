"""Runs and exported files of version 0.2.0 are read; old.tar.xz has them."""

import json
import pathlib
import tarfile

import jax
import ml_collections
import numpy as np
import pytest

from vit_ssl_jax import evaluate, models, train
from vit_ssl_jax.export import export
from vit_ssl_jax.interop import pretrained
from vit_ssl_jax.recipes import schema

EXPORTS = {
  "vit": (
    "reference.safetensors",
    "timm.pth",
    "transformers",
    "orbax",
    "flat.npz",
  ),
  "swin": ("swin_transformers",),
  "cait": ("cait_timm.safetensors",),
}
CASES = [(name, name) for name in ("views", "patches", *EXPORTS)]
CASES += [(x, f"exports/{file}") for x in EXPORTS for file in EXPORTS[x]]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
  """A folder of runs, of `exports`, and of what these compute."""
  folder = tmp_path_factory.mktemp("packed")
  with tarfile.open(pathlib.Path(__file__).with_name("old.tar.xz")) as file:
    file.extractall(folder, filter="data")
  folder /= "old"
  for path in folder.rglob("*.json"):
    path.write_text(path.read_text().replace("OLD", str(folder)))
  return folder


@pytest.fixture(scope="module")
def images(old):
  return np.load(old / "tiny.npz")["test_images"]


def outputs(path, images):
  """Logits of a classifier, features of a backbone."""
  weights = pretrained.read(path)
  sizes = {k: v for k, v in weights.about["model"].items() if k != "name"}
  model = models.build(weights.architecture, **sizes)
  params, _ = pretrained.fit(weights, model.clone(num_classes=0), "x")
  about = weights.about
  predict = evaluate.make_predict(model, about["mean"], about["std"])
  return jax.jit(predict)(params, images)


@pytest.mark.parametrize(("name", "path"), CASES)
def test_outputs_are_the_same(name, path, old, images, request):
  if path.endswith(".pth"):
    request.getfixturevalue("torch")
  expected = np.load(old / "outputs.npz")[name]
  np.testing.assert_allclose(
    outputs(old / path, images), expected, atol=1e-5, rtol=0
  )


def test_a_program_runs(old, images):
  data = (old / "exports" / "program.stablehlo").read_bytes()
  program = jax.export.deserialize(bytearray(data))
  expected = jax.nn.softmax(np.load(old / "outputs.npz")["vit"])
  np.testing.assert_allclose(program.call(images), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["views", "patches", "swin"])
def test_a_run_is_exported(name, old, images, tmp_path):
  export(old / name, "timm", tmp_path / "x.safetensors")
  expected = np.load(old / "outputs.npz")[name]
  np.testing.assert_allclose(
    outputs(tmp_path / "x.safetensors", images), expected, atol=1e-5, rtol=0
  )


@pytest.mark.parametrize(
  ("stopped", "name"), [("views_stopped", "views"), ("stopped", "vit")]
)
def test_a_run_is_resumed(stopped, name, old):
  """With the result it had then, to rounding: on two devices, not one."""
  result = resume(old / stopped)
  expected = json.loads((old / name / "result.json").read_text())
  assert result["step"] == expected["step"] == 9
  assert result["loss"] == pytest.approx(expected["loss"], abs=1e-3)
  params, old_params = (
    pretrained.read(old / x).arrays for x in (stopped, name)
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5, rtol=0),
    params,
    old_params,
  )


@pytest.mark.parametrize("name", ["patches", "swin", "cait"])
def test_a_finished_run_stays_finished(name, old):
  expected = json.loads((old / name / "result.json").read_text())
  assert resume(old / name)["state_sha256"] == expected["state_sha256"]


def resume(workdir):
  config = ml_collections.ConfigDict(schema.read_config(workdir))
  config.max_steps = 0
  return train.run(config, workdir)
