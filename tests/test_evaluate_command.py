"""The evaluation command: its scores, what it keeps, what it refuses."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax.augment import pipelines
from vit_ssl_jax.data import load as loading
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import command, corruptions, model, pictures, suites
from vit_ssl_jax.run import checkpoints

COUNT = 20  # images of one corruption at one severity
ALL = corruptions.CORRUPTIONS + corruptions.EXTRA


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch):
  """Leaves this process's libraries as the tests have set them up."""
  monkeypatch.setattr(command.cli, "configure", lambda: None)


@pytest.fixture
def own(trained, tmp_path):
  """A copy of `trained`, for a test to change."""
  return pathlib.Path(shutil.copytree(trained[0], tmp_path / "own"))


@pytest.fixture
def classifier(make_workdir):
  """(classes, config's changes) -> the workdir of a random classifier."""

  def make(classes, **changes):
    workdir = make_workdir("finetune", "vit", classes, scale=0.5, **changes)
    (workdir / "dataset.json").write_text(json.dumps({"classes": classes}))
    return workdir

  return make


def predict(workdir, images):
  """Classes (N,) of images (N, 8, 8, 3) uint8, all at once."""
  state, _ = checkpoints.read(workdir)
  images = pipelines.evaluation_view(images, (0.5,) * 3, (0.25,) * 3)
  apply = jax.jit(model.read(workdir).model.apply)
  logits = np.asarray(apply({"params": state["params"]}, images))
  return logits.argmax(-1)


def write_folder(folder, classes):
  """Writes ten images of 8 pixels for each class."""
  rng = np.random.default_rng(0)
  for name in classes:
    (folder / name).mkdir(parents=True)
    for i in range(10):
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
  scores = run(own, "--batch_size=7")["test"]
  assert (scores["step"], scores["images"], scores["top1"]) == (9, 20, top1)
  assert sum(map(sum, scores["confusion"])) == 20
  out = capsys.readouterr().out.splitlines()
  assert out[0].split()[:3] == ["suite", "images", "top-1"]
  assert out[2].split()[:3] == ["test", "20", f"{top1:.2f}"]


def test_several_suites_are_one_program(classifier, tiny_npz):
  workdir = classifier(["0", "1"], val_fraction=0.25)
  model.forward.clear_cache()
  results = run(workdir, f"--suite=val, test,{tiny_npz}", "--batch_size=7")
  assert model.forward._cache_size() == 1
  dataset = loading.load(tiny_npz, 8, val_fraction=0.25, progress=False)
  val = dataset.val_images, dataset.val_labels, 12
  test = dataset.test_images, dataset.test_labels, 20
  for suite, part in (("val", val), ("test", test), (tiny_npz, test)):
    images, labels, count = part
    correct = predict(workdir, np.asarray(images)) == labels
    assert results[suite]["images"] == len(images) == count
    assert results[suite]["top1"] == pytest.approx(100 * np.mean(correct))


def test_earlier_suites_are_kept(own, tiny_npz, capsys):
  old = {"step": 3, "images": 1, "top1": 0.0}
  path = own / "evaluation.json"
  path.write_text(json.dumps({"test": old, "svhn": old}))
  results = run(own, f"--suite={tiny_npz}")
  assert results["test"] == results["svhn"] == old
  assert set(results) == {"test", "svhn", tiny_npz}
  command.main([f"--workdir={own}/checkpoints/9", "--json"])  # one checkpoint
  again = json.loads(path.read_text())
  assert again["test"] == results[tiny_npz]
  assert again["svhn"] == old
  assert json.loads(capsys.readouterr().out.splitlines()[-1]) == again
  assert not list(own.glob("*.tmp"))


def write_cifar10_c(folder):
  """Writes a small set as it is published, each severity in its own order."""
  rng = np.random.default_rng(0)
  folder.mkdir()
  labels = np.concatenate([rng.permutation(COUNT) % 10 for _ in range(5)])
  np.save(folder / "labels.npy", labels.astype(np.uint8))
  for name in ALL:
    colors = rng.integers(0, 256, (5 * COUNT, 4, 4, 3), np.uint8)
    np.save(folder / f"{name}.npy", colors.repeat(8, 1).repeat(8, 2))
  return folder


def test_corruptions(classifier, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(corruptions, "IMAGES", COUNT)
  folder = write_cifar10_c(tmp_path / "CIFAR-10-C")
  workdir = classifier([str(i) for i in range(10)])
  results = run(workdir, f"--suite=cifar10_c:{folder}", "--batch_size=8")
  place = corruptions.find(f"cifar10_c:{folder}")
  parts = [part[2:] for part in corruptions.read(place, 8)]
  images, labels = map(np.concatenate, zip(*parts, strict=True))
  correct = predict(workdir, images) == labels
  want = 100 * correct.reshape(len(ALL), 5, COUNT).mean(-1)
  assert len(np.unique(want)) > 3  # or the test would say little
  assert list(results) == ["cifar10_c"]
  scores = results["cifar10_c"]
  assert tuple(scores["corruptions"]) == ALL
  got = list(scores["corruptions"].values())
  np.testing.assert_allclose(got, want, rtol=1e-12)
  error = float(np.mean(100 - want[:15]))
  assert scores["mean_error"] == pytest.approx(error)
  assert scores["top1"] == pytest.approx(100 - error)
  assert (scores["step"], scores["images"]) == (7, COUNT)
  out = capsys.readouterr().out.splitlines()
  assert out[0].split() == ["cifar10_c", "images", "mean", *"12345"]
  row = [f"{x:.2f}" for x in (want[0].mean(), *want[0])]
  assert out[2].split() == ["gaussian_noise", f"{COUNT}", *row]
  assert len(out) == 2 + len(ALL) + 1
  assert out[-1] == f"mean error over the 15: {error:.2f}"


def test_an_interruption_keeps_earlier_results(own, monkeypatch, capsys):
  place, real = (
    corruptions.Place("cifar10_c", None, False, ALL),
    suites.evaluate,
  )

  def evaluate(name, suite, *rest):
    if suite is place:
      raise KeyboardInterrupt
    return real(name, suite, *rest)

  open_suite = suites.open_suite
  monkeypatch.setattr(
    suites,
    "open_suite",
    lambda name, *x: place if "_c" in name else open_suite(name, *x),
  )
  monkeypatch.setattr(suites, "evaluate", evaluate)
  with pytest.raises(SystemExit) as stop:
    run(own, "--suite=test,cifar10_c")
  assert stop.value.code == 130
  assert list(json.loads((own / "evaluation.json").read_text())) == ["test"]
  assert "test" in capsys.readouterr().out


def test_another_set_has_only_its_test_images_read(own, monkeypatch):
  asked, real = {}, loading.load

  def load(name, image_size, **arguments):
    asked.update(arguments, name=name, image_size=image_size)
    return real(str(config["dataset"]), image_size, progress=False)

  config = json.loads((own / "config.json").read_text())
  monkeypatch.setattr(loading, "load", load)
  assert run(own, "--suite=cinic10", "--data_dir=/d")["cinic10"]
  assert asked == {
    "name": "cinic10", "image_size": 8, "data_dir": "/d",
    "train_split": "validation", "resize": "crop", "test_fraction": 0.2,
    "skip_broken_images": False, "seed": 0,
    "mean": config["mean"], "std": config["std"],
  }  # fmt: skip


def test_folders(classifier, tmp_path, capsys):
  suite = write_folder(tmp_path / "set", ("cat", "dog"))
  workdir = classifier(["cat", "dog"], dataset=suite)
  results = run(workdir, f"--suite=test,{suite}")
  assert results["test"] == results[suite]
  assert results["test"]["images"] == 4  # a fifth, and not one of training
  files = sorted((tmp_path / "set").rglob("*.png"))
  images = np.stack([np.asarray(Image.open(file)) for file in files])
  correct = predict(workdir, images) == np.repeat([0, 1], 10)
  assert 0 < correct.sum() < 20
  write_folder(tmp_path / "parts" / "train", ("cat", "dog"))
  shutil.copytree(tmp_path / "set", tmp_path / "parts" / "test")
  whole = f"folder:{tmp_path}/parts"
  results = run(workdir, f"--suite={whole}")
  assert results[whole]["top1"] == pytest.approx(100 * correct.mean())
  capsys.readouterr()
  other = write_folder(tmp_path / "other", ("cow", "dog"))
  before = (workdir / "evaluation.json").read_text()
  error = refused(capsys, f"--workdir={workdir}", f"--suite=test,{other}")
  assert f"--suite={other} has other classes than {workdir}" in error
  assert error.endswith("class 0 is 'cow' there and 'cat' in the run\n")
  assert (workdir / "evaluation.json").read_text() == before


@pytest.mark.parametrize(
  ("ours", "theirs", "words"),
  [
    ("cat dog eel", "cat dog eel", None),
    ("cat dog eel", "dog cat eel", "class 0 is 'dog' there and 'cat' in the"),
    ("cat dog eel", "cat dog", "x has 2 classes, but the head of W has 3"),
    ("cat dog", "cat dog eel", "x has 3 classes, but the head of W has 2"),
    ("cat dog eel", "cat eel dog", "class 1 is 'eel' there and 'dog' in the"),
    ("cat dog eel", "0 1 2", None),
    ("cat dog eel", "0 1", None),
    ("cat dog eel", "0 1 2 3", "x has 4 classes, but the head of W has 3"),
    ("0 1 2", "cat dog eel", None),
    ("0 1 2", "cat dog", "x has 2 classes, but the head of W has 3"),
    ("0 1 2", "0 1", None),
    ("0 1 2", "0 1 10", "class 2 is '10' there and '2' in the run"),
  ],
)
def test_classes_must_fit(ours, theirs, words):
  network = model.Network("W", None, {}, {}, tuple(ours.split()))
  if words is None:
    suites.check_classes("x", theirs.split(), network)
  else:
    with pytest.raises(UserError, match=words):
      suites.check_classes("x", theirs.split(), network)


def test_frozen_features(make_workdir, capsys):
  workdir = make_workdir("finetune", "vit", ["0", "1"])
  results = run(workdir, "--suite=knn,linear,attention")
  for kind in ("knn", "linear"):
    assert results[kind]["step"] == 7
    for name in ("top1", "raw_pixels", "untrained"):
      assert 0 <= results[kind][name] <= 100
  assert results["linear"]["raw_pixels"] == 100  # dark and bright
  path = workdir / "attention.png"
  assert results["attention"] == {"step": 7, "picture": str(path)}
  assert path.read_bytes().startswith(b"\x89PNG")
  assert "untrained" in capsys.readouterr().out


def titles(fig):
  return [axis.get_title() for axis in fig.axes if axis.get_title()]


def test_pictures_of_one_model_have_its_heads(make_workdir):
  network = model.read(make_workdir("pretrain", "vit", ["0", "1"]))
  dataset = network.load_data()
  fig = pictures.attention({"mean": network}, dataset)
  assert titles(fig) == ["image", "mean", "60% of it", "head 1", "head 2"]
  assert len(fig.axes) == 2 * 5  # an image of each class
  maps = network.attention(pictures.examples(dataset, 2), 1)
  np.testing.assert_allclose(
    fig.axes[3].images[1].get_array(), maps[0, 0], rtol=1e-5
  )
  fig = pictures.features(network, dataset, 8)
  assert titles(fig)[:2] == ["PCA", "t-SNE"]
  assert sum(len(x.get_offsets()) for x in fig.axes[0].collections) == 20


def test_attention_of_two_models_at_another_size(
  make_workdir, tmp_path, monkeypatch
):
  one, other = (
    make_workdir("finetune", arch, ["0", "1"]) for arch in ("vit", "cait")
  )
  drawn, draw = [], pictures.attention
  monkeypatch.setattr(
    pictures, "attention", lambda *x: drawn.append(draw(*x)) or drawn[0]
  )
  command.main([
    *(f"--workdir={one}", "--suite=attention", f"--beside={other}"),
    *("--image_size=16", f"--out={tmp_path}"),
  ])  # fmt: skip
  assert (tmp_path / "attention.png").exists()
  mask = "60% of it"
  names = [str(x)[-24:] for x in (other, one)]
  assert titles(drawn[0]) == ["image", names[0], mask, names[1], mask]
  assert drawn[0].axes[1].images[1].get_array().shape == (4, 4)


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--suite=tset"], "unknown --suite='tset': did you mean 'test'?"),
    (["--suite=test,"], "--suite='': must be one of test, val, knn,"),
    (["--suite=CIFAR-10-C"], "did you mean 'cifar10_c'?"),
    (["--suite=cifar10:/x"], "did you mean 'cifar10'?"),
    (["--suite=feature"], "did you mean 'features'"),
    (["--suite=test,val,test"], "names test twice"),
    (["--suite=cifar10_c,cifar10_c:/x"], "names cifar10_c twice"),
    (["--suite=test,npz:/none.npz"], "/none.npz cannot be read"),
    (["--suite=test,folder:/none"], "there is no folder '/none'"),
    (["--suite=test,cifar10_c"], "cifar10_c has 10 classes, but the head of"),
    (["--suite=cifar100_c:/x"], "cifar100_c:/x has 100 classes, but"),
    (["--suite=test,val"], "has no validation images"),
    (["--batch_size=0"], "--batch_size=0 must be at least 1"),
    (["--batch_size=few"], "invalid int value: 'few'"),
    (["--sute=test"], "unrecognized arguments: --sute=test"),
    (["--suite=test", "--beside=B"], "--beside goes with --suite=attention"),
    (["--suite=test,knn"], "knn evaluate features"),
    (["--suite=knn", "--image_size=16"], "--image_size goes with"),
    (["--suite=attention", "--image_size=-1"], "--image_size=-1 must be"),
    (["--suite=attention", "--image_size=9"], "not a multiple"),
  ],
)
def test_arguments_that_make_no_sense(trained, arguments, words, capsys):
  workdir = trained[0]
  assert words in refused(capsys, f"--workdir={workdir}", *arguments)
  assert not (workdir / "evaluation.json").exists()


def test_workdirs_that_cannot_be_evaluated(
  own, make_workdir, classifier, capsys, monkeypatch
):
  assert "give either --workdir=B or" in refused(capsys)
  assert "no file or folder" in refused(capsys, f"--workdir={own}/none")
  pretrained = make_workdir("pretrain", "vit", ["0", "1"])
  error = refused(capsys, f"--workdir={pretrained}")
  assert f"{pretrained} is a backbone and has no classes" in error
  many = classifier([str(i) for i in range(100)])
  error = refused(capsys, f"--workdir={many}", "--suite=cifar10_c:/x")
  assert f"has 10 classes, but the head of {many} has 100" in error
  about = (own / "dataset.json").read_text()
  (own / "dataset.json").write_text(about.replace('"test": 20', '"test": 21'))
  error = refused(capsys, f"--workdir={own}")
  assert str(own) in error
  assert "changed since" in error
  (own / "evaluation.json").write_text('{"test":')
  error = refused(capsys, f"--workdir={own}")
  assert f"{own}/evaluation.json cannot be read" in error
  (own / "evaluation.json").unlink()
  monkeypatch.setattr(os, "access", lambda *_: False)
  assert "is read-only" in refused(capsys, f"--workdir={own}")
  config = (own / "config.json").read_text()
  (own / "config.json").write_text(config.replace('"depth": 2', '"depth": 3'))
  assert "does not fit the model: missing blocks_2.attn" in refused(
    capsys, f"--workdir={own}"
  )
