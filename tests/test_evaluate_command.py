"""The evaluation command: its figures, what it keeps, what it refuses."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax import models
from vit_ssl_jax.augment import multi_crop as views
from vit_ssl_jax.data import load as loading
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import (
  __main__ as command,
  accuracy,
  classifier as classifiers,
  corruptions,
  suites,
)
from vit_ssl_jax.run import checkpoints, workdir as workdirs

ROOT = pathlib.Path(__file__).parent.parent
COUNT = 20  # images of one corruption at one severity
PARTS = ("images", "labels")
ALL = corruptions.CORRUPTIONS + corruptions.EXTRA


@pytest.fixture(autouse=True)
def as_it_is(monkeypatch):
  """Leaves this process's libraries as the tests have set them up."""
  monkeypatch.setattr(command, "configure", lambda: None)


@pytest.fixture
def own(trained, tmp_path):
  """A copy of `trained`, for a test to change."""
  return pathlib.Path(shutil.copytree(trained[0], tmp_path / "own"))


@pytest.fixture
def fresh(finetune_tiny, tmp_path):
  """(dataset, classes) -> the workdir of random weights, and predictions.

  What predicts is plain: (images (N, 8, 8, 3) uint8) -> (N,) classes.
  """
  config = finetune_tiny
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3, val_fraction=0.25)

  def make(dataset, classes, state=None):
    config.dataset = dataset
    described = types.SimpleNamespace(
      name=dataset, classes=classes, mean=config.mean, std=config.std,
      **{
        f"{part}_{field}": np.zeros(0, int)
        for part in ("train", "val", "test")
        for field in ("labels", "fingerprints")
      },
    )  # fmt: skip
    model = models.from_config(config, len(classes))
    shapes = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
    params = jax.tree_util.tree_map_with_path(random_weights, shapes)
    workdir = tmp_path / "fresh"
    with workdirs.opened(config, workdir, described):
      pass
    (workdir / "dataset.json").write_text(
      json.dumps({"name": dataset, "classes": classes})
    )
    with checkpoints.manager(workdir, 1, 0) as saver:
      step = np.full((), 7, np.int32)
      checkpoints.save(saver, 7, state or {"step": step, "params": params})

    @jax.jit
    def predict(images):
      images = views.evaluation_view(images, config.mean, config.std)
      return jnp.argmax(model.apply({"params": params}, images), -1)

    return workdir, predict

  return make


def random_weights(path, shape):
  """Such that what comes out depends much on what is seen."""
  if path[-1].key != "kernel":  # norms' scales are 1
    return np.full(shape.shape, path[-1].key == "scale", np.float32)
  rng = np.random.default_rng(0)
  return rng.normal(size=shape.shape).astype(np.float32)


def write_cifar10_c(folder):
  """Writes a set as it is published, small; each severity in its own order."""
  rng = np.random.default_rng(0)
  folder.mkdir()
  labels = np.concatenate([rng.permutation(COUNT) % 10 for _ in range(5)])
  np.save(folder / "labels.npy", labels.astype(np.uint8))
  for name in ALL:
    colors = rng.integers(0, 256, (5 * COUNT, 4, 4, 3), np.uint8)
    np.save(folder / f"{name}.npy", colors.repeat(8, 1).repeat(8, 2))
  return folder


def write_folder(folder, classes, count=10):
  """Writes images of 8 pixels, `count` for each class."""
  rng = np.random.default_rng(0)
  for name in classes:
    (folder / name).mkdir(parents=True)
    for i in range(count):
      pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
      Image.fromarray(pixels).save(folder / name / f"{i}.png")
  return f"folder:{folder}"


def run(workdir, *arguments):
  command.main([f"--workdir={workdir}", *arguments])
  return json.loads((workdir / "evaluation.json").read_text())


def refused(capsys, *arguments):
  """The sentence that arguments are refused with."""
  with pytest.raises(SystemExit) as stop:
    command.main([*arguments])
  assert stop.value.code == 2
  out, error = capsys.readouterr()
  assert not out
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  return error


def test_top1_is_the_runs_own(trained, own, capsys):
  top1 = trained[1]["top1"]
  found = run(own, "--batch_size=7")["test"]
  assert (found["step"], found["images"], found["top1"]) == (9, 20, top1)
  assert sum(map(sum, found["confusion"])) == 20
  out = capsys.readouterr().out.splitlines()
  assert out[0].split()[:3] == ["suite", "images", "top-1"]
  assert out[2].split()[:3] == ["test", "20", f"{top1:.2f}"]


def test_several_suites_are_one_program(fresh, tiny_npz, monkeypatch):
  traced, view = [], views.evaluation_view
  workdir, predict = fresh(tiny_npz, ["0", "1"])
  monkeypatch.setattr(
    accuracy.multi_crop,
    "evaluation_view",
    lambda *x: traced.append(0) or view(*x),
  )
  found = run(workdir, f"--suite=val, test,{tiny_npz}", "--batch_size=7")
  assert len(traced) == 1
  dataset = loading.load(tiny_npz, 8, val_fraction=0.25, progress=False)
  for suite, part in (("val", "val"), ("test", "test"), (tiny_npz, "test")):
    images, labels = (getattr(dataset, f"{part}_{x}") for x in PARTS)
    want = 100 * float(np.mean(predict(np.asarray(images)) == labels))
    assert found[suite]["images"] == len(images) == {"val": 12}.get(part, 20)
    assert found[suite]["top1"] == pytest.approx(want)


def test_earlier_suites_are_kept(own, tiny_npz, capsys):
  path = own / "evaluation.json"
  old = {"step": 3, "images": 1, "top1": 0.0}
  path.write_text(json.dumps({"test": old, "svhn": old}))
  found = run(own, f"--suite={tiny_npz}")
  assert found["test"] == found["svhn"] == old
  assert set(found) == {"test", "svhn", tiny_npz}
  again = run(own, "--json")
  assert again["test"] == found[tiny_npz] | {"images": 20}
  assert again["svhn"] == old
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) == again
  assert not list(own.glob("*.tmp"))


def test_one_checkpoint(own, capsys):
  command.main([f"--workdir={own}/checkpoints/9"])
  found = json.loads((own / "evaluation.json").read_text())
  assert found["test"]["step"] == 9
  assert "test" in capsys.readouterr().out


def test_older_runs_say_less_of_themselves(trained, own):
  (own / "dataset.json").unlink()
  config = json.loads((own / "config.json").read_text())
  for key in ("resize", "test_fraction", "test_split", "skip_broken_images"):
    del config[key]
  (own / "config.json").write_text(json.dumps(config))
  assert run(own)["test"]["top1"] == trained[1]["top1"]


def test_corruptions(fresh, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(corruptions, "IMAGES", COUNT)
  folder = write_cifar10_c(tmp_path / "CIFAR-10-C")
  workdir, predict = fresh("cifar10", [str(i) for i in range(10)])
  found = run(workdir, f"--suite=cifar10_c:{folder}", "--batch_size=8")
  place = corruptions.find(f"cifar10_c:{folder}")
  images, labels = zip(
    *[part[2:] for part in corruptions.read(place, 8)], strict=True
  )
  correct = np.asarray(
    predict(np.concatenate(images)) == np.concatenate(labels)
  )
  want = 100 * correct.reshape(len(ALL), 5, COUNT).mean(-1)
  assert len(np.unique(want)) > 3  # or the test would say little
  (figures,) = found.values()
  assert tuple(figures["corruptions"]) == ALL
  got = list(figures["corruptions"].values())
  np.testing.assert_allclose(got, want, rtol=1e-12)
  error = float(np.mean(100 - want[:15]))
  assert figures["mean_error"] == pytest.approx(error)
  assert figures["top1"] == pytest.approx(100 - error)
  assert (figures["step"], figures["images"]) == (7, COUNT)
  assert list(found) == ["cifar10_c"]
  out = capsys.readouterr().out.splitlines()
  assert out[0].split() == ["cifar10_c", "images", "mean", *"12345"]
  assert out[2].split() == ["gaussian_noise", f"{COUNT}"] + [
    f"{x:.2f}" for x in (want[0].mean(), *want[0])
  ]
  assert len(out) == 2 + len(ALL) + 1
  assert out[-1] == f"mean error over the 15: {error:.2f}"


def test_what_is_found_before_an_interruption(own, monkeypatch, capsys):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(suites, "open_suite", stub(suites.open_suite))
  monkeypatch.setattr(suites, "evaluate_corruptions", interrupt)
  with pytest.raises(SystemExit) as stop:
    run(own, "--suite=test,cifar10_c")
  assert stop.value.code == 130
  assert list(json.loads((own / "evaluation.json").read_text())) == ["test"]
  assert "test" in capsys.readouterr().out


def stub(real):
  """`open_suite` with a corrupted set that is not there."""
  place = corruptions.Place("cifar10_c", None, False, ALL)
  return lambda name, *x: place if "_c" in name else real(name, *x)


def test_another_set_has_only_its_test_images_read(own, monkeypatch):
  asked, real = {}, loading.load

  def load(name, image_size, **given):
    asked.update(given, name=name, image_size=image_size)
    return real(str(config["dataset"]), image_size, progress=False)

  config = json.loads((own / "config.json").read_text())
  monkeypatch.setattr(suites, "load_set", load)
  assert run(own, "--suite=cinic10", "--data_dir=/d")["cinic10"]
  assert asked == {
    "name": "cinic10", "image_size": 8, "data_dir": "/d",
    "train_split": "validation", "resize": "crop", "test_fraction": 0.2,
    "skip_broken_images": False, "seed": 0,
    "mean": config["mean"], "std": config["std"],
  }  # fmt: skip


def test_folders(fresh, tmp_path, capsys):
  suite = write_folder(tmp_path / "set", ("cat", "dog"))
  workdir, predict = fresh(suite, ["cat", "dog"])
  found = run(workdir, f"--suite=test,{suite}")
  files = sorted((tmp_path / "set").rglob("*.png"))
  assert found["test"] == found[suite]
  assert found["test"]["images"] == 4  # a fifth, and not one of training
  images = np.stack([np.asarray(Image.open(file)) for file in files])
  want = predict(images) == np.repeat([0, 1], 10)
  assert 0 < want.sum() < 20
  whole = write_folder(tmp_path / "parts" / "train", ("cat", "dog"))
  shutil.copytree(tmp_path / "set", tmp_path / "parts" / "test")
  whole = whole.removesuffix("/train")
  found = run(workdir, f"--suite={whole}")
  assert found[whole]["top1"] == pytest.approx(100 * want.mean())
  capsys.readouterr()
  other = write_folder(tmp_path / "other", ("cow", "dog"))
  before = (workdir / "evaluation.json").read_text()
  said = refused(capsys, f"--workdir={workdir}", f"--suite=test,{other}")
  assert f"--suite={other} has other classes than {workdir}" in said
  assert said.endswith("class 0 is cow there and cat in the run\n")
  assert (workdir / "evaluation.json").read_text() == before


@pytest.mark.parametrize(
  ("ours", "theirs", "words"),
  [
    ("cat dog eel", "cat dog eel", None),
    ("cat dog eel", "dog cat eel", "class 0 is dog there and cat in the run"),
    ("cat dog eel", "cat dog", "x has 2 classes, but the head of W has 3"),
    ("cat dog", "cat dog eel", "x has 3 classes, but the head of W has 2"),
    ("cat dog eel", "cat eel dog", "class 1 is eel there and dog in the run"),
    ("cat dog eel", "0 1 2", None),
    ("cat dog eel", "0 1", None),
    ("cat dog eel", "0 1 2 3", "x has 4 classes, but the head of W has 3"),
    ("0 1 2", "cat dog eel", None),
    ("0 1 2", "cat dog", "x has 2 classes, but the head of W has 3"),
    ("0 1 2", "0 1", None),
    ("0 1 2", "0 1 10", "class 2 is 10 there and 2 in the run"),
  ],
)
def test_classes_have_to_fit(ours, theirs, words):
  held = classifiers.Classifier("W", None, tuple(ours.split()), {}, None)
  if words is None:
    suites.check_classes("x", theirs.split(), held)
  else:
    with pytest.raises(UserError, match=words):
      suites.check_classes("x", theirs.split(), held)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--suite=tset"], "'tset' is unknown: did you mean 'test'?"),
    (["--suite=test,"], "'' is unknown: possible are test, val, knn,"),
    (["--suite=CIFAR-10-C"], "did you mean 'cifar10_c'?"),
    (["--suite=cifar10:/x"], "did you mean 'cifar10'?"),
    (["--suite=test,val,test"], "names test twice"),
    (["--suite=cifar10_c,cifar10_c:/x"], "names cifar10_c twice"),
    (["--suite=test,npz:/none.npz"], "there is no file /none.npz"),
    (["--suite=test,folder:/none"], "there is no folder '/none'"),
    (["--suite=test,cifar10_c"], "cifar10_c has 10 classes, but the head of"),
    (["--suite=cifar100_c:/x"], "cifar100_c:/x has 100 classes, but"),
    (["--batch_size=0"], "--batch_size=0 has to be at least 1"),
    (["--batch_size=few"], "invalid int value: 'few'"),
    (["--sute=test"], "unrecognized arguments: --sute=test"),
  ],
)
def test_arguments_that_make_no_sense(trained, arguments, words, capsys):
  workdir = trained[0]
  assert words in refused(capsys, f"--workdir={workdir}", *arguments)
  assert not (workdir / "evaluation.json").exists()


def test_a_smaller_corrupted_set_does_not_fit(fresh, capsys, tiny_npz):
  workdir, _ = fresh(tiny_npz, [str(i) for i in range(100)])
  said = refused(capsys, f"--workdir={workdir}", "--suite=cifar10_c:/x")
  assert f"has 10 classes, but the head of {workdir} has 100" in said


def test_workdirs_that_cannot_be_evaluated(own, fresh, tiny_npz, capsys):
  assert "give either --workdir=B or" in refused(capsys)
  assert "no file or folder" in refused(capsys, f"--workdir={own}/none")
  teacher = {"backbone": {"cls_token": np.zeros(2)}}
  state = {"step": np.zeros((), np.int32), "teacher": teacher}
  pretrained, _ = fresh(tiny_npz, ["0", "1"], state)
  said = refused(capsys, f"--workdir={pretrained}")
  assert f"{pretrained} is a teacher's backbone" in said
  (own / "evaluation.json").write_text('{"test":')
  said = refused(capsys, f"--workdir={own}")
  assert f"{own}/evaluation.json is damaged" in said
  (own / "evaluation.json").unlink()
  config = (own / "config.json").read_text()
  (own / "config.json").write_text(config.replace('"depth": 2', '"depth": 3'))
  assert "does not fit the model: missing blocks_2.attn" in refused(
    capsys, f"--workdir={own}"
  )


def test_a_workdir_that_is_read_only(trained, capsys, monkeypatch):
  monkeypatch.setattr(command.os, "access", lambda *_: False)
  assert "is read-only" in refused(capsys, f"--workdir={trained[0]}")


def test_images_that_changed_since(own, capsys):
  about = json.loads((own / "dataset.json").read_text())
  about["images"]["test"] = 21
  (own / "dataset.json").write_text(json.dumps(about))
  said = refused(capsys, f"--workdir={own}")
  assert f"{own} was trained on something else: the number" in said


def test_no_validation_images(trained, capsys):
  workdir = trained[0]
  said = refused(capsys, f"--workdir={workdir}", "--suite=test,val")
  assert f"{workdir} has no validation images" in said


def test_help(capsys):
  with pytest.raises(SystemExit) as stop:
    command.main(["--help"])
  assert stop.value.code == 0
  text = capsys.readouterr().out
  for word in ("--workdir=B --suite=test,cifar10_c", "tiny_imagenet", "--json"):
    assert word in text


def test_module_can_be_run(trained, own):
  line = [sys.executable, "-m", "vit_ssl_jax.evaluate", "--json"]
  process = subprocess.run(
    [*line, f"--workdir={own}"],
    cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True,
  )  # fmt: skip
  found = json.loads(process.stdout)["test"]
  assert (found["step"], found["images"]) == (9, 20)
  assert found["top1"] == trained[1]["top1"]
