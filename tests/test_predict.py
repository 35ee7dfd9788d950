"""The prediction command: its classes, its lines, what it refuses."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from vit_ssl_jax import export, predict
from vit_ssl_jax.data import load, pixels
from vit_ssl_jax.evaluate import classifier as classifiers
from vit_ssl_jax.run import checkpoints

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def as_it_is(monkeypatch):
  """Leaves this process's libraries as the tests have set them up."""
  monkeypatch.setattr(predict, "configure", lambda: None)


@pytest.fixture
def workdir(memory, make_workdir):
  """A fine-tuning's, of random weights and two classes."""
  if "workdir" not in memory:
    memory["workdir"] = make_workdir("finetune", "vit", ["0", "1"])
  return memory["workdir"]


@pytest.fixture
def run(memory, workdir):
  """The classifier of `workdir`."""
  if "run" not in memory:
    memory["run"] = classifiers.read(workdir)
  return memory["run"]


@pytest.fixture
def folder(memory, tiny_npz, tmp_path_factory):
  """The 20 test images as PNG, named in their order, in two folders."""
  if "folder" not in memory:
    folder = tmp_path_factory.mktemp("images")
    images = load.load(tiny_npz, 8, progress=False).test_images
    for i, image in enumerate(np.asarray(images)):
      path = folder / "ab"[i // 10] / f"{i:02}.png"
      path.parent.mkdir(exist_ok=True)
      Image.fromarray(image).save(path)
    memory["folder"] = folder
  return memory["folder"]


def command(capsys, *arguments):
  """The JSON lines of a command that ends well."""
  predict.main(["--json", *map(str, arguments)])
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def fails(capsys, status, *arguments):
  """What a command prints that ends with a status: output, and errors."""
  with pytest.raises(SystemExit) as stop:
    predict.main([*map(str, arguments)])
  assert stop.value.code == status
  return capsys.readouterr()


def refused(capsys, *arguments):
  """The sentence that arguments are refused with."""
  out, error = fails(capsys, 2, *arguments)
  assert not out
  assert error.startswith("error: ")
  assert error.count("\n") == 1
  return error


def probabilities(found):
  """Lines of JSON to (N, C), in the order of the classes."""
  return np.array(
    [
      [x["probability"] for x in sorted(line["classes"], key=by_class)]
      for line in found
    ]
  )


def by_class(pair):
  return pair["class"]


def as_the_model_gets_them(run, files):
  """Images (N, 8, 8, 3) uint8 and outputs, which are random, (N, 2)."""
  images, outputs = [], np.random.default_rng(0).normal(size=(len(files), 2))

  def logits(batch):
    images.append(np.asarray(batch))
    return np.pad(outputs, [(0, len(batch) - len(outputs)), (0, 0)])

  changed = dataclasses.replace(run, predict=logits)
  found = list(predict.predictions(changed, list(map(str, files))))
  want = jax.nn.softmax(outputs)
  for (file, shares, why), given, row in zip(found, files, want, strict=True):
    assert (file, why) == (str(given), "")
    np.testing.assert_allclose(shares, row, rtol=1e-6)
  return np.concatenate(images)[: len(files)]


def random_image(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_the_same_classes_as_in_evaluation(
  workdir, run, folder, tiny_npz, capsys
):
  found = command(capsys, f"--workdir={workdir}", folder)
  names = [f"{'ab'[i // 10]}/{i:02}.png" for i in range(20)]
  assert [x["image"] for x in found] == [f"{folder}/{name}" for name in names]
  dataset = load.load(tiny_npz, 8, progress=False)
  want = np.asarray(run.predict(np.asarray(dataset.test_images)))
  got = np.array([int(x["classes"][0]["class"]) for x in found])
  np.testing.assert_array_equal(got, want.argmax(-1))
  shares = probabilities(found)
  np.testing.assert_allclose(shares, jax.nn.softmax(want), atol=1e-5)
  np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
  for line in found:
    first, second = (x["probability"] for x in line["classes"])
    assert first >= second


def test_images_are_read_as_a_viewer_shows_them(run, tmp_path):
  square, wide = random_image(8, 8), random_image(8, 20)
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6  # upright after a quarter turn clockwise
  turned, grey = tmp_path / "turned.webp", tmp_path / "grey.bmp"
  Image.fromarray(square).save(turned, lossless=True, exif=exif)
  Image.fromarray(square[..., 0]).save(grey)
  Image.fromarray(wide).save(tmp_path / "wide.PNG")
  smooth = Image.fromarray(random_image(4, 6)).resize((300, 200))
  smooth.save(tmp_path / "photo.jpg", exif=exif, quality=95)
  files = [turned, grey, tmp_path / "wide.PNG", tmp_path / "photo.jpg"]
  images = as_the_model_gets_them(run, files).astype(int)
  np.testing.assert_array_equal(images[0], np.rot90(square, -1))
  np.testing.assert_array_equal(images[1], square[..., :1].repeat(3, -1))
  # The middle, as the run's resize=crop has it.
  np.testing.assert_array_equal(images[2], wide[:, 6:14])
  middle = smooth.rotate(-90, expand=True).crop((0, 50, 200, 250))
  middle = np.asarray(middle.resize((8, 8), Image.BICUBIC), int)
  assert abs(images[3] - middle).max() < 6 < np.ptp(middle) / 10


def test_resize_is_the_runs(run, tmp_path):
  wide = Image.fromarray(random_image(8, 20))
  wide.save(tmp_path / "wide.png")
  changed = dataclasses.replace(run, data=run.data | {"resize": "squash"})
  (image,) = as_the_model_gets_them(changed, [tmp_path / "wide.png"])
  np.testing.assert_array_equal(image, wide.resize((8, 8), Image.BICUBIC))


@pytest.mark.parametrize(
  ("count", "batch_size", "decoded", "shapes"),
  [
    (1, 256, [1], [2]),  # one more for the second device
    (3, 256, [3], [4]),
    (3, 2, [2, 1], [2, 2]),
    (5, 3, [3, 2], [4, 4]),
    (0, 2, [], []),
  ],
)
def test_batches_are_of_one_shape_and_read_one_by_one(
  run, folder, monkeypatch, count, batch_size, decoded, shapes
):
  seen, met, decode_all = [], [], pixels.decode_all

  def decode(out, files, *args, **options):
    seen.append(len(out))
    return decode_all(out, files, *args, **options)

  def brightness(images):
    met.append(len(images))
    assert len(met) == len(seen)  # nothing is read ahead of it
    bright = np.asarray(images).mean((1, 2, 3)) / 255
    return jax.numpy.log(np.stack([1 - bright, bright], -1))

  monkeypatch.setattr(pixels, "decode_all", decode)
  files = sorted(map(str, folder.rglob("*.png")))[:count]
  changed = dataclasses.replace(run, predict=brightness)
  found = list(predict.predictions(changed, files, batch_size))
  assert (seen, met) == (decoded, shapes)
  assert [file for file, *_ in found] == files
  for file, shares, _ in found:
    want = np.asarray(Image.open(file)).mean() / 255
    np.testing.assert_allclose(shares, [1 - want, want])


@pytest.mark.parametrize("to", ["npz", "stablehlo"])
def test_exports_answer_as_the_run_does(to, workdir, folder, tmp_path, capsys):
  out = tmp_path / f"model.{to}"
  export.export(workdir, to, out)
  found, want = (
    command(capsys, f"--{option}={path}", folder)
    for option, path in (("init_from", out), ("workdir", workdir))
  )
  for x, y in zip(found, want, strict=True):
    assert x["image"] == y["image"]
    assert x["classes"][0]["class"] == y["classes"][0]["class"]
  np.testing.assert_allclose(
    probabilities(found), probabilities(want), atol=1e-5
  )


def test_a_file_that_says_nothing_of_itself(workdir, folder, tmp_path, capsys):
  export.export(workdir, "npz", tmp_path / "model.npz")
  with np.load(tmp_path / "model.npz") as file:
    np.savez(tmp_path / "bare.npz", **file)
  said = refused(capsys, f"--init_from={tmp_path}/bare.npz", folder)
  assert "give --arch (of vit, swin, cait) and --dataset" in said


def test_lines_are_aligned(workdir, folder, capsys):
  given = [f"{folder}/a", f"{folder}/./b"]
  predict.main([given[0], f"--workdir={workdir}", "--top=9", given[1]])
  out, error = capsys.readouterr()
  lines = out.splitlines()
  assert not error
  assert len(lines) == 20
  pattern = r"(\S+) +([01]) +(\d+\.\d) %  ([01]) +(\d+\.\d) %"
  for i, line in enumerate(lines):
    path, first, share, second, rest = re.fullmatch(pattern, line).groups()
    assert path == f"{given[i // 10]}/{i:02}.png"
    assert {first, second} == {"0", "1"}
    assert 100 >= float(share) >= float(rest)
    assert float(share) + float(rest) == pytest.approx(100, abs=0.11)
  assert len({len(line) for line in lines}) == 1


def test_names_of_any_length_are_aligned():
  pairs = [("cat", 0.5), ("sea lion", 0.0512)]
  line = predict.make_text_line(["a.png", "b/c.png"], ["cat", "sea lion"])
  assert line("a.png", pairs) == ("a.png    cat       50.0 %  sea lion   5.1 %")
  assert line("b/c.png", [("cat", 1.0)]) == "b/c.png  cat      100.0 %"


def test_likeliest():
  shares, classes = np.array([0.1, 0.4, 0.1, 0.4]), "abcd"
  best = predict.likeliest(shares, classes, 3)
  assert best == [("b", 0.4), ("d", 0.4), ("a", 0.1)]
  assert len(predict.likeliest(shares, classes, 9)) == 4


def test_broken_images_do_not_stop_others(workdir, tmp_path, capsys):
  Image.fromarray(random_image(8, 8)).save(tmp_path / "good.png")
  (tmp_path / "bad.jpg").write_text("no image")
  (tmp_path / "empty.png").touch()
  arguments = (f"--workdir={workdir}", tmp_path)
  out, error = fails(capsys, 1, *arguments)
  assert out.startswith(f"{tmp_path}/good.png ")
  assert out.count("\n") == 1
  assert error.splitlines() == [
    f"{tmp_path}/bad.jpg: no JPEG, PNG, WebP, BMP or GIF image",
    f"{tmp_path}/empty.png: empty",
    "2 of 3 images could not be read",
  ]
  out, again = fails(capsys, 1, *arguments, "--json", "--batch_size=2")
  assert again == error
  bad, empty, good = map(json.loads, out.splitlines())
  why = "no JPEG, PNG, WebP, BMP or GIF image"
  assert bad == {"image": f"{tmp_path}/bad.jpg", "error": why}
  assert empty == {"image": f"{tmp_path}/empty.png", "error": "empty"}
  assert set(good) == {"image", "classes"}


def test_a_file_that_vanishes(run, folder, tmp_path):
  (tmp_path / "bad.jpg").touch()
  files = [f"{folder}/a/00.png", f"{tmp_path}/none.png", f"{tmp_path}/bad.jpg"]
  found = list(predict.predictions(run, files))
  assert [why for *_, why in found] == [
    "", "cannot be read: No such file or directory", "empty",
  ]  # fmt: skip
  assert [shares is None for _, shares, _ in found] == [False, True, True]


def test_which_files_a_folder_has(tmp_path):
  names = ("b.JPG", "a/z.gif", "a.png", "a/b/c.webp", "ten.txt", ".d.png")
  for name in (*names, ".e/f.png", "__MACOSX/g.png", "a/b/Thumbs.db"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  want = [f"{tmp_path}/{name}" for name in sorted((*names[:4],))]
  assert predict.images_at(str(tmp_path)) == want
  assert predict.images_at(f"{tmp_path}/") == want
  text = f"{tmp_path}/ten.txt"  # given by its name it may be an image
  assert predict.images_at(text) == [text]


def test_paths_that_hold_no_images(workdir, folder, tmp_path, capsys):
  (tmp_path / "notes.txt").touch()
  given = (f"--workdir={workdir}", folder)
  said = refused(capsys, *given, f"{tmp_path}/none.png")
  assert f"{tmp_path}/none.png: there is no such image or folder" in said
  assert f"{tmp_path} has no images" in refused(capsys, *given, tmp_path)
  (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
  said = refused(capsys, *given, tmp_path)
  assert f"{tmp_path}/link.png cannot be read: No such file" in said


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--top=0"], "--top=0 has to be at least 1"),
    (["--top=few"], "invalid int value: 'few'"),
    (["--batch_size=0"], "--batch_size=0 has to be at least 1"),
    (["--init_from=x"], "give either --workdir=B or --init_from=FILE"),
    (["--arch=vit"], "--arch and --dataset go with --init_from"),
    (["--tpo=3"], "unrecognized arguments: --tpo=3"),
  ],
)
def test_arguments_that_make_no_sense(
  workdir, folder, arguments, words, capsys
):
  assert words in refused(capsys, f"--workdir={workdir}", folder, *arguments)


def test_what_is_no_classifier(workdir, folder, tmp_path, capsys):
  assert "required: IMAGE" in refused(capsys, f"--workdir={workdir}")
  assert "give either --workdir=B or" in refused(capsys, folder)
  said = refused(capsys, f"--workdir={tmp_path}/none", folder)
  assert f"{tmp_path}/none" in said
  pretrained = pathlib.Path(shutil.copytree(workdir, tmp_path / "pretrained"))
  shutil.rmtree(pretrained / "checkpoints")
  state = {"step": np.zeros((), np.int32)}
  state["teacher"] = {"backbone": {"cls_token": np.zeros(2)}}
  with checkpoints.manager(pretrained, 1, 0) as saver:
    checkpoints.save(saver, 0, state)
  said = refused(capsys, f"--workdir={pretrained}", folder)
  assert f"{pretrained} " in said
  assert "no classes" in said
  export.export(workdir, "npz", tmp_path / "model.npz")
  said = refused(capsys, f"--workdir={tmp_path}/model.npz", folder)
  assert "is no workdir: did you mean --init_from?" in said


def test_names_that_are_not_text(workdir, folder, tmp_path, capsys):
  name = os.fsdecode(b"caf\xe9.png")
  shutil.copy(folder / "a" / "00.png", tmp_path / name)
  (found,) = command(capsys, f"--workdir={workdir}", tmp_path)
  assert found["image"] == f"{tmp_path}/{name}"
  predict.main([f"--workdir={workdir}", str(tmp_path)])
  assert "caf\\udce9.png" in capsys.readouterr().out


def test_a_bar_only_where_it_tears_nothing(tmp_path, monkeypatch):
  terminal = types.SimpleNamespace(isatty=lambda: True)
  reading, writing = os.pipe()
  with open(tmp_path / "out", "w") as file, open(writing, "w") as pipe:
    os.close(reading)
    for out, error, want in (
      (file, terminal, True),
      (file, file, False),
      (pipe, terminal, False),
    ):
      monkeypatch.setattr(sys, "stdout", out)
      monkeypatch.setattr(sys, "stderr", error)
      assert predict.shows_bar() == want


def test_help(capsys):
  out, _ = fails(capsys, 0, "--help")
  for word in ("--workdir=B image.jpg", "--top", '"probability": 0.931'):
    assert word in out


def test_a_pipe_that_is_closed(workdir, folder):
  line = [sys.executable, "-m", "vit_ssl_jax.predict", f"--workdir={workdir}"]
  with subprocess.Popen(
    [*line, folder],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  ) as process:  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == ""
  assert process.returncode == 128 + signal.SIGPIPE


def test_class_names_stay_on_one_line():
  line = predict.make_text_line(["a.png"], ["red\nfox", "owl"])
  assert line("a.png", [("red\nfox", 0.9), ("owl", 0.1)]) == (
    "a.png  red fox  90.0 %  owl      10.0 %"
  )
