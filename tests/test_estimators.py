"""Both stages as scikit-learn estimators."""

import dataclasses
import os
import pickle
import signal

import numpy as np
import pytest
import sklearn.base
import sklearn.utils.estimator_checks

import vit_ssl_jax
from vit_ssl_jax import files, recipes, train
from vit_ssl_jax.data import load
from vit_ssl_jax.errors import UserError

TINY = {
  "model.embed_dim": 8,
  "model.depth": 1,
  "model.num_heads": 2,
  "views.local_views": 1,
  "evaluate_batch_size": 16,
}
TUNING = {"augment.autoaugment": "", "evaluate_batch_size": 16}
TINY_TUNING = TUNING | {k: v for k, v in TINY.items() if "views" not in k}


@pytest.fixture(scope="module")
def images(tiny_npz):
  with np.load(tiny_npz.removeprefix("npz:")) as file:
    labels = np.array(["dark", "bright"])[file["train_labels"]]
    return file["train_images"], labels


@pytest.fixture(scope="module")
def teacher(images):
  """A `Pretrainer` of a few steps."""
  return vit_ssl_jax.Pretrainer(budget="3", config=TINY).fit(images[0])


@pytest.fixture(scope="module")
def classifier(images, teacher):
  """A `Classifier` of a few steps, from the teacher."""
  return vit_ssl_jax.Classifier(init=teacher, budget="4", config=TUNING).fit(
    *images
  )


def test_the_numbers_are_those_of_the_command(teacher, tiny_npz, tmp_path):
  config = recipes.get("pretrain", f"vit,{tiny_npz}")
  config.budget = "3"
  config.update_from_flattened_dict(TINY)
  result = train.run(config, tmp_path)
  assert teacher.result_["state_sha256"] == result["state_sha256"]
  assert len(teacher.history_) == result["step"]


def test_the_former_name_warns():
  with pytest.warns(DeprecationWarning, match="now called Pretrainer"):
    assert vit_ssl_jax.ViewPrediction is vit_ssl_jax.Pretrainer


def test_features(teacher, images):
  features = teacher.transform(images[0][:5])
  assert features.shape == (5, 8)
  assert features.dtype == np.float32
  grey = images[0][:5, ..., 0]
  assert teacher.transform(grey).shape == (5, 8)
  assert np.isfinite(features).all()


def test_classifier(classifier, images):
  proba = classifier.predict_proba(images[0])
  assert proba.shape == (48, 2)
  np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
  assert list(classifier.classes_) == ["bright", "dark"]
  guesses = classifier.predict(images[0])
  assert set(guesses) <= {"bright", "dark"}
  share = np.mean(guesses == images[1])
  assert classifier.score(*images) == pytest.approx(share)
  assert classifier.attention(images[0][:3]).shape == (3, 2, 8, 8)


def test_saved_and_loaded(classifier, images, tmp_path):
  classifier.save(tmp_path / "w")
  again = vit_ssl_jax.Classifier.load(tmp_path / "w")
  expected = classifier.predict_proba(images[0])
  np.testing.assert_array_equal(again.predict_proba(images[0]), expected)
  assert list(again.classes_) == list(classifier.classes_)
  with pytest.raises(UserError, match="is not empty"):
    classifier.save(tmp_path / "w")
  with pytest.raises(UserError, match="is a run of finetune"):
    vit_ssl_jax.Pretrainer.load(tmp_path / "w")


def test_labels_keep_their_type(images, tmp_path):
  labels = np.where(images[1] == "dark", 7, 3)
  made = vit_ssl_jax.Classifier(budget="1", config=TINY_TUNING)
  made.fit(images[0], labels).save(tmp_path / "w")
  again = vit_ssl_jax.Classifier.load(tmp_path / "w")
  assert again.classes_.tolist() == [3, 7]
  assert again.score(images[0], labels) == made.score(images[0], labels)


def test_exported(classifier, tmp_path):
  said = classifier.export(tmp_path / "x.safetensors", "timm")
  assert (tmp_path / "x.safetensors").is_file()
  assert "timm.create_model" in said


def test_pickled(teacher, images):
  again = pickle.loads(pickle.dumps(teacher))
  np.testing.assert_array_equal(
    again.transform(images[0][:4]), teacher.transform(images[0][:4])
  )


def test_an_interrupted_fit_is_resumed(teacher, images, monkeypatch):
  real = load.open_data

  def open_data(*args):
    config, dataset, source = real(*args)
    chosen = source.items(0)

    def items(start):
      os.kill(os.getpid(), signal.SIGINT)
      yield from chosen

    return config, dataset, dataclasses.replace(source, items=items)

  made = sklearn.base.clone(teacher)
  monkeypatch.setattr(load, "open_data", open_data)
  with pytest.raises(KeyboardInterrupt):
    made.fit(images[0])
  monkeypatch.undo()
  _, place = made._interrupted
  assert os.path.isdir(place)
  other = pickle.loads(pickle.dumps(made)).fit(255 - images[0])  # starts anew
  assert other.result_["state_sha256"] != teacher.result_["state_sha256"]
  made.fit(images[0])
  assert made.result_["state_sha256"] == teacher.result_["state_sha256"]
  assert not os.path.exists(place)


def test_another_teacher_needs_another_workdir(teacher, tmp_path):
  model = vit_ssl_jax.Classifier(init=teacher, workdir=tmp_path / "W")
  folder = tmp_path / "W_init"
  assert model.save_init(folder) == model.save_init(folder) == str(folder)
  files.write(folder / "result.json", "{}")
  with pytest.raises(UserError, match="another teacher"):
    model.save_init(folder)


def test_an_estimator_is_fitted_before_it_predicts(images):
  with pytest.raises(sklearn.exceptions.NotFittedError):
    vit_ssl_jax.Classifier().predict_proba(images[0])


@pytest.mark.parametrize(
  "estimator", [vit_ssl_jax.Pretrainer(), vit_ssl_jax.Classifier()]
)
@pytest.mark.parametrize(
  "check",
  [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
  ],
)
def test_checks_of_scikit_learn_pass(check, estimator):
  """`check_estimator` itself skips estimators of images."""
  name = type(estimator).__name__
  getattr(sklearn.utils.estimator_checks, check)(name, estimator)


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"X": np.zeros((4, 8, 8, 3))}, "X must be uint8 .* not float64"),
    ({"X": np.zeros((4, 8), np.uint8)}, r"of shape \(4, 8\)"),
    ({"X": np.zeros((0, 8, 8), np.uint8)}, "not empty"),
    ({"X": "/nowhere"}, "there is no folder '/nowhere'"),
    ({"y": [1, 2]}, "4 images have 2 labels"),
    ({"y": [1, 1, 1, 1]}, "all labels are 1"),
    ({"arch": "vti"}, "did you mean 'vit'"),
    ({"config": {"model.dept": 3}}, "did you mean 'model.depth'"),
    ({"budget": "soon"}, "a time such as"),
    ({"workdir": "/proc/x"}, "cannot write"),
  ],
)
def test_bad_arguments_cost_one_sentence(given, words):
  X = given.pop("X", np.zeros((4, 8, 8, 3), np.uint8))
  y = given.pop("y", [0, 1, 0, 1])
  with pytest.raises(UserError, match=words):
    vit_ssl_jax.Classifier(**given).fit(X, y)


def test_folders(tmp_path, images, teacher):
  from PIL import Image

  for i, (image, name) in enumerate(zip(*images, strict=True)):
    (tmp_path / name).mkdir(exist_ok=True)
    Image.fromarray(image).save(tmp_path / name / f"{i}.png")
  assert teacher.transform(tmp_path).shape == (48, 8)
  made = vit_ssl_jax.Classifier(budget="1", config=TINY_TUNING).fit(tmp_path)
  assert list(made.classes_) == ["bright", "dark"]
