"""Figures of classifiers, and what frozen features are worth."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax import models
from vit_ssl_jax.evaluate import __main__ as command, figures, linear, pictures


def test_figures_of_a_classifier():
  labels = np.array([0, 0, 1, 2])
  guesses = np.array([0, 1, 1, 2])
  logits = 9.0 * np.eye(6)[guesses] - 0.1 * np.arange(6)
  found = figures.classification(logits, labels)
  assert found["images"] == 4
  assert found["top1"] == 75
  assert found["top5"] == 100
  assert found["per_class"] == [50, 100, 100, None, None, None]
  assert np.array(found["confusion"])[0, :2].tolist() == [1, 1]
  assert np.sum(found["confusion"]) == 4
  json.dumps(found)


def test_calibration_error_is_the_distance_of_confidence_and_accuracy():
  confidence = 0.8
  logits = np.log([[confidence, 1 - confidence]] * 10)
  labels = np.array([0] * 6 + [1] * 4)
  found = figures.calibration_error(logits, labels)
  assert found == pytest.approx(100 * (confidence - 0.6))


def test_a_linear_probe_finds_a_plane():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 300)
  features = np.eye(3)[labels] + 0.1 * rng.normal(size=(300, 3))
  top1 = linear.linear_accuracy(
    features[:200], labels[:200], features[200:], labels[200:]
  )
  assert top1 == 100


def test_a_mask_holds_its_share_with_the_fewest_patches():
  maps = np.array([[0.5, 0.2], [0.2, 0.1]])
  assert pictures.mask(maps, 0.6).sum() == 2
  assert pictures.mask(maps, 0.5).tolist() == [[True, False], [False, False]]
  assert pictures.mask(maps, 1.0).all()


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
def test_attention_by_head(arch, make_tiny):
  model = models.from_config(make_tiny("pretrain", arch), 0)
  params = models.init(model, jax.random.key(0))
  images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
  weights = model.apply({"params": params}, images, method="attention")
  maps = models.attention_maps(weights)
  assert maps.shape == (3, weights.shape[1], 2, 2)
  assert (maps > 0).all()
  sums = maps.sum((2, 3))
  if arch == "swin":
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
  else:  # the class token keeps some for itself
    assert (sums < 1).all()


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_command(stage, make_workdir, capsys):
  workdir = make_workdir(stage, "vit", ["0", "1"])
  (workdir / "dataset.json").unlink()
  suites = "knn,linear,attention,features"
  command.main([f"--workdir={workdir}", f"--suite={suites}", "--batch_size=16"])
  found = json.loads((workdir / "evaluation.json").read_text())
  for kind in ("knn", "linear"):
    assert found[kind]["step"] == 7
    for name in ("top1", "raw_pixels", "untrained"):
      assert 0 <= found[kind][name] <= 100
  assert found["linear"]["raw_pixels"] == 100  # dark and bright
  for kind in ("attention", "features"):
    assert Image.open(workdir / f"{kind}.png").width > 300
  assert "untrained" in capsys.readouterr().out


def test_two_models_at_another_size(make_workdir, tmp_path):
  one, other = (
    make_workdir("finetune", x, ["0", "1"]) for x in ("vit", "cait")
  )
  for workdir in (one, other):
    (workdir / "dataset.json").unlink()
  command.main([
    f"--workdir={one}", "--suite=attention", f"--beside={other}",
    "--image_size=16", f"--out={tmp_path}",
  ])  # fmt: skip
  assert Image.open(tmp_path / "attention.png").width > 300


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--suite=test", "--beside=B"], "--beside goes with --suite=attention"),
    (["--suite=test,knn"], "knn look at features"),
    (["--suite=knn", "--image_size=16"], "--image_size goes with"),
    (["--suite=attention", "--image_size=-1"], "--image_size=-1"),
    (["--suite=attention", "--image_size=9"], "not a multiple"),
    (["--suite=feature"], "did you mean 'features'"),
  ],
)
def test_arguments_that_make_no_sense(arguments, words, make_workdir, capsys):
  workdir = make_workdir("finetune", "vit", ["0", "1"])
  with pytest.raises(SystemExit):
    command.main([f"--workdir={workdir}", *arguments])
  assert words in capsys.readouterr().err
