"""The prediction command: its classes, its lines, what it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import scipy.special
from PIL import ExifTags, Image

from vit_ssl_jax import export, predict
from vit_ssl_jax.data import load
from vit_ssl_jax.evaluate import model


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch):
  """Leaves this process's libraries as the tests have set them up."""
  monkeypatch.setattr(predict.cli, "configure", lambda: None)


@pytest.fixture(scope="module")
def workdir(make_workdir):
  """That of a fine-tuning of random weights and two classes."""
  return make_workdir("finetune", "vit", ["0", "1"])


@pytest.fixture(scope="module")
def folder(tiny_npz, tmp_path_factory):
  """The 20 test images as PNG, named in their order, in two folders."""
  folder = tmp_path_factory.mktemp("images")
  images = load.load(tiny_npz, 8, progress=False).test_images
  for i, image in enumerate(np.asarray(images)):
    path = folder / "ab"[i // 10] / f"{i:02}.png"
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)
  return folder


def command(capsys, *arguments):
  """The JSON lines of a command that ends well."""
  predict.main(["--json", *map(str, arguments)])
  return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def fails(capsys, status, *arguments):
  """The output and errors of a command that ends with a status."""
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


def probabilities(lines):
  """Lines of JSON to (N, C), in the order of the classes."""
  rows = [
    sorted((x["class"], x["probability"]) for x in line["classes"])
    for line in lines
  ]
  return np.array([[p for _, p in row] for row in rows])


class Recorder:
  """A classifier of two classes by brightness that keeps its images."""

  classes = ("dark", "bright")

  def __init__(self, resize="crop"):
    self.data = {"image_size": 8, "resize": resize}
    self.batches = []

  def logits(self, images, batch_size):
    self.batches.append((len(images), batch_size))
    self.images = images
    bright = np.clip(images.mean((1, 2, 3)) / 255, 1e-9, 1)
    return np.log(np.stack([1 - bright, bright], -1))


def decoded(files, resize="crop"):
  """Images (N, 8, 8, 3) as a classifier gets them."""
  classifier = Recorder(resize)
  for file, _, error in predict.predictions(classifier, files, len(files)):
    assert not error, file
  return classifier.images.astype(int)


def random_image(height, width):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def test_the_same_classes_as_in_evaluation(workdir, folder, tiny_npz, capsys):
  lines = command(capsys, f"--workdir={workdir}", folder)
  names = [f"{folder}/{'ab'[i // 10]}/{i:02}.png" for i in range(20)]
  assert [x["image"] for x in lines] == names
  images = load.load(tiny_npz, 8, progress=False).test_images
  want = model.read(workdir).logits(images, 20)
  top = [int(x["classes"][0]["class"]) for x in lines]
  np.testing.assert_array_equal(top, want.argmax(-1))
  want = scipy.special.softmax(want, -1)
  np.testing.assert_allclose(probabilities(lines), want, atol=1e-5)


def test_images_are_read_as_a_viewer_shows_them(tmp_path):
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
  images = decoded(files)
  np.testing.assert_array_equal(images[0], np.rot90(square, -1))
  np.testing.assert_array_equal(images[1], square[..., :1].repeat(3, -1))
  # The middle, as the run's resize=crop has it.
  np.testing.assert_array_equal(images[2], wide[:, 6:14])
  middle = smooth.rotate(-90, expand=True).crop((0, 50, 200, 250))
  middle = np.asarray(middle.resize((8, 8), Image.BICUBIC), int)
  assert abs(images[3] - middle).max() < 6 < np.ptp(middle) / 10
  (squashed,) = decoded([tmp_path / "wide.PNG"], "squash")
  want = Image.fromarray(wide).resize((8, 8), Image.BICUBIC)
  np.testing.assert_array_equal(squashed, want)


@pytest.mark.parametrize(
  ("count", "batch_size", "batches"),
  [
    (1, 256, [(1, 1)]),
    (3, 2, [(2, 2), (1, 2)]),
    (5, 3, [(3, 3), (2, 3)]),
    (0, 2, []),
  ],
)
def test_batches_are_decoded_one_by_one(folder, count, batch_size, batches):
  classifier = Recorder()
  files = sorted(map(str, folder.rglob("*.png")))[:count]
  rows = predict.predictions(classifier, files, batch_size)
  for i, (file, shares, error) in enumerate(rows):
    assert (file, error) == (files[i], "")
    assert len(classifier.batches) == 1 + i // batch_size  # none ahead
    want = np.asarray(Image.open(file)).mean() / 255
    np.testing.assert_allclose(shares, [1 - want, want])
  assert classifier.batches == batches


def test_exports_answer_as_the_run_does(workdir, folder, tmp_path, capsys):
  export.export(workdir, "npz", tmp_path / "model.npz")
  exported, want = (
    command(capsys, f"--{option}={path}", folder)
    for option, path in (
      ("init_from", tmp_path / "model.npz"),
      ("workdir", workdir),
    )
  )
  assert [x["image"] for x in exported] == [x["image"] for x in want]
  np.testing.assert_allclose(
    probabilities(exported), probabilities(want), atol=1e-5
  )
  error = refused(capsys, f"--workdir={tmp_path}/model.npz", folder)
  assert "is not a workdir: did you mean --init_from?" in error
  with np.load(tmp_path / "model.npz") as file:
    np.savez(tmp_path / "bare.npz", **file)
  error = refused(capsys, f"--init_from={tmp_path}/bare.npz", folder)
  assert "give --arch (one of vit, swin, cait) and --dataset" in error


def test_lines_are_aligned(workdir, folder, capsys):
  paths = [f"{folder}/a", f"{folder}/./b"]
  predict.main([paths[0], f"--workdir={workdir}", "--top=9", paths[1]])
  out, error = capsys.readouterr()
  lines = out.splitlines()
  assert not error
  assert [line.split()[0] for line in lines] == [
    f"{paths[i // 10]}/{i:02}.png" for i in range(20)
  ]
  for line in lines:
    first, second = re.findall(r"[01] +(\d+\.\d) %", line)
    assert 100 >= float(first) >= float(second)
    assert float(first) + float(second) == pytest.approx(100, abs=0.11)
  assert len({len(line) for line in lines}) == 1


def test_names_of_any_length_are_aligned_on_one_line():
  line = predict.make_text_line(["a.png", "b/c.png"], ["cat", "sea\nlion"])
  pairs = [("cat", 0.5), ("sea\nlion", 0.0512)]
  assert line("a.png", pairs) == "a.png    cat       50.0 %  sea lion   5.1 %"
  assert line("b/c.png", [("cat", 1.0)]) == "b/c.png  cat      100.0 %"


def test_ties_keep_the_order_of_the_classes():
  values, classes = np.array([0.1, 0.4, 0.1, 0.4]), "abcd"
  best = predict.most_probable(values, classes, 3)
  assert best == [("b", 0.4), ("d", 0.4), ("a", 0.1)]
  assert len(predict.most_probable(values, classes, 9)) == 4


def test_broken_images_do_not_stop_others(workdir, tmp_path, capsys):
  Image.fromarray(random_image(8, 8)).save(tmp_path / "good.png")
  (tmp_path / "bad.jpg").write_text("no image")
  (tmp_path / "empty.png").touch()
  arguments = (f"--workdir={workdir}", tmp_path)
  out, error = fails(capsys, 1, *arguments)
  assert out.startswith(f"{tmp_path}/good.png ")
  assert out.count("\n") == 1
  why, *rest = error.splitlines()
  assert why.startswith(f"{tmp_path}/bad.jpg: ")
  assert rest == [
    f"{tmp_path}/empty.png: empty", "2 of 3 images could not be read"
  ]  # fmt: skip
  out, again = fails(capsys, 1, *arguments, "--json", "--batch_size=2")
  assert again == error
  bad, empty, good = map(json.loads, out.splitlines())
  assert f"{bad['image']}: {bad['error']}" == why
  assert empty == {"image": f"{tmp_path}/empty.png", "error": "empty"}
  assert set(good) == {"image", "classes"}
  vanished = [f"{tmp_path}/good.png", f"{tmp_path}/none.png"]
  rows = list(predict.predictions(Recorder(), vanished, 2))
  assert [x[2] for x in rows] == [
    "", "cannot be read: No such file or directory"
  ]  # fmt: skip


def test_folders_are_searched_for_images(tmp_path):
  names = ("b.JPG", "a/z.gif", "a.png", "a/b/c.webp", "ten.txt", ".d.png")
  for name in (*names, ".e/f.png", "__MACOSX/g.png", "a/b/Thumbs.db"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  want = [f"{tmp_path}/{name}" for name in sorted(names[:4])]
  assert predict.images_at(str(tmp_path)) == want
  assert predict.images_at(f"{tmp_path}/") == want
  text = f"{tmp_path}/ten.txt"  # given by its name it may be an image
  assert predict.images_at(text) == [text]


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["W"], "required: IMAGE"),
    (["F"], "give either --workdir=B or"),
    (["W", "F", "--init_from=x"], "give either --workdir=B or --init_from"),
    (["--workdir=/none", "F"], "/none"),
    (["W", "F", "--top=0"], "--top=0 must be at least 1"),
    (["W", "F", "--top=few"], "invalid int value: 'few'"),
    (["W", "F", "--batch_size=0"], "--batch_size=0 must be at least 1"),
    (["W", "F", "--arch=vit"], "--arch and --dataset go with --init_from"),
    (["W", "F", "--tpo=3"], "unrecognized arguments: --tpo=3"),
    (["W", "F", "T/none.png"], "there is no image or folder T/none.png"),
    (["W", "F", "T/empty"], "T/empty"),
    (["W", "F", "T/linked"], "T/linked/x.png"),
    (["--init_from=T/x.stablehlo", "F"], "T/x.stablehlo is a compiled program"),
  ],
)
def test_arguments_that_make_no_sense(
  arguments, words, workdir, folder, tmp_path, capsys
):
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "notes.txt").touch()
  (tmp_path / "linked").mkdir()
  (tmp_path / "linked" / "x.png").symlink_to(tmp_path / "nowhere")
  (tmp_path / "x.stablehlo").touch()
  known = {"W": f"--workdir={workdir}", "F": folder}
  filled = [known.get(x, x.replace("T/", f"{tmp_path}/")) for x in arguments]
  assert words.replace("T/", f"{tmp_path}/") in refused(capsys, *filled)


def test_backbones_are_refused(make_workdir, folder, capsys):
  pretrained = make_workdir("pretrain", "vit", ["0", "1"])
  error = refused(capsys, f"--workdir={pretrained}", folder)
  assert f"{pretrained} is a backbone and has no classes" in error


def test_names_that_are_not_text(workdir, folder, tmp_path, capsys):
  name = os.fsdecode(b"caf\xe9.png")
  shutil.copy(folder / "a" / "00.png", tmp_path / name)
  (line,) = command(capsys, f"--workdir={workdir}", tmp_path)
  assert line["image"] == f"{tmp_path}/{name}"
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


def test_a_pipe_that_is_closed(workdir, folder):
  line = [sys.executable, "-m", "vit_ssl_jax.predict", f"--workdir={workdir}"]
  with subprocess.Popen(
    [*line, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    process.stdout.close()
    assert process.stderr.read() == ""
  assert process.returncode == 128 + signal.SIGPIPE
