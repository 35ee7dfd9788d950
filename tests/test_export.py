"""Exported models give the same logits elsewhere, and come back unchanged."""

import functools
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys
from importlib.util import find_spec

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from vit_ssl_jax import evaluate, export as command, models
from vit_ssl_jax.data import pixels
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import model as networks
from vit_ssl_jax.export import export
from vit_ssl_jax.interop import metadata as provenance, pretrained, programs
from vit_ssl_jax.run import checkpoints

CLASSES = ["cat", "dog", "eel"]
NAMES = {
  "reference": "x.safetensors",
  "timm": "x.pth" if find_spec("torch") else "x.safetensors",
  "transformers": "folder",
  "stablehlo": "x.stablehlo",
  "orbax": "orbax",
  "npz": "x.npz",
}
RESULT = {"top1": 87.5, "step": 7, "versions": {"jax": "0.10"}}
ROUND_TRIPS = [
  ("finetune", arch, to)
  for arch in ("vit", "swin", "cait")
  for to in NAMES
  if to != "stablehlo" and (arch, to) != ("cait", "transformers")
]
ROUND_TRIPS += [("pretrain", "vit", to) for to in NAMES if to != "stablehlo"]
ROUND_TRIPS += [("pretrain", "swin", to) for to in ("timm", "transformers")]


@pytest.fixture(scope="module")
def run(make_workdir):
  """(stage, arch) -> a run that no test changes."""
  return functools.cache(lambda stage, arch: make_workdir(stage, arch, CLASSES))


@pytest.fixture(scope="module")
def workdir(run):
  return run("finetune", "vit")


@functools.cache
def ours(workdir):
  """A run's model, its parameters, and images (N, S, S, 3) uint8 -> logits."""
  weights = pretrained.read(workdir)
  about = weights.about
  sizes = {k: v for k, v in about["model"].items() if k != "name"}
  model = models.build(weights.architecture, **sizes)
  predict = jax.jit(evaluate.make_predict(model, about["mean"], about["std"]))
  return model, weights.arrays, functools.partial(predict, weights.arrays)


def images_of(workdir, count=5):
  size = pretrained.read(workdir).about["model"]["image_size"]
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, size, size, 3), np.uint8)


def normalized(images, about):
  """As PyTorch takes them, (N, 3, S, S) float32."""
  x = (images / 255 - about["mean"]) / about["std"]
  return x.astype(np.float32).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("stage", "arch", "to"), ROUND_TRIPS)
def test_there_and_back(stage, arch, to, run, tmp_path):
  workdir = run(stage, arch)
  out = tmp_path / NAMES[to]
  said = export(workdir, to, out)
  assert f"{out}: the " in said
  file = out / "model.safetensors" if to == "transformers" else out
  if file.is_file():
    assert hashlib.sha256(file.read_bytes()).hexdigest() in said
  before, after = pretrained.read(workdir), pretrained.read(out)
  model = ours(workdir)[0].clone(num_classes=0)
  params, lines = pretrained.fit(after, model, "x")
  assert not lines
  jax.tree.map(np.testing.assert_array_equal, params, before.arrays)
  assert ("head" in params) == (stage == "finetune")
  for key in ("architecture", "part", "mean", "std", "images", "step"):
    assert after.about[key] == before.about[key]
  sizes = after.about["model"]
  assert models.build(sizes.pop("name"), **sizes) == ours(workdir)[0]
  assert after.about["dataset"] == "npz:tiny.npz"
  assert after.about["config"]["optim"] == before.about["config"]["optim"]
  assert after.about["result"] == RESULT
  if stage == "finetune" or to != "transformers":  # has no place for them
    assert after.about["classes"] == CLASSES


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
def test_timm_from_the_file_alone(arch, torch, run, tmp_path):
  import timm
  from safetensors import safe_open
  from safetensors.torch import load_file

  workdir = run("finetune", arch)
  out = tmp_path / "x.safetensors"
  said = export(workdir, "timm", out)
  with safe_open(out, "pt") as file:
    about = json.loads(file.metadata()["timm"])
  assert f"{about['name']!r}, img_size=8" in said
  arguments = about["arguments"]
  if arch == "swin":
    assert "norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6)" in said
    arguments["norm_layer"] = functools.partial(torch.nn.LayerNorm, eps=1e-6)
  theirs = timm.create_model(about["name"], **arguments)
  theirs.load_state_dict(load_file(out), strict=True)
  images = images_of(workdir)
  inputs = normalized(images, pretrained.read(workdir).about)
  with torch.no_grad():
    logits = theirs.eval()(torch.from_numpy(inputs)).numpy()
  np.testing.assert_allclose(logits, ours(workdir)[2](images), atol=1e-4)


@pytest.mark.parametrize(
  ("arch", "resize", "shape"),
  [("vit", "crop", (21, 21)), ("swin", "squash", (21, 30))],
)
def test_transformers_sees_the_same_images(
  arch, resize, shape, torch, make_workdir, tmp_path
):
  from transformers import AutoImageProcessor, AutoModelForImageClassification

  workdir = make_workdir("finetune", arch, CLASSES, resize=resize)
  out = tmp_path / "folder"
  export(workdir, "transformers", out)
  processor = AutoImageProcessor.from_pretrained(out)
  theirs = AutoModelForImageClassification.from_pretrained(out)
  assert theirs.config.id2label == dict(enumerate(CLASSES))
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  inputs = processor(Image.fromarray(image), return_tensors="pt")
  seen = pixels.decode(image, 8, resize)[None]
  about = pretrained.read(workdir).about
  difference = inputs["pixel_values"].numpy() - normalized(seen, about)
  # One level is 1 / 255 / 0.25: theirs may resize tensors, which round
  # otherwise.
  assert np.abs(difference).max() < 1.01 / 255 / 0.25
  with torch.no_grad():
    logits = theirs(torch.from_numpy(normalized(seen, about))).logits.numpy()
  np.testing.assert_allclose(logits, ours(workdir)[2](seen), atol=1e-4)


def test_model_card(workdir, tmp_path):
  export(workdir, "transformers", tmp_path / "folder")
  text = (tmp_path / "folder" / "README.md").read_text()
  for words in (
    "library_name: transformers",
    "| 87.50 % |",
    "3 classes: cat, dog, eel.",
    "48 train, 20 test images",
    "--config=configs/finetune.py:vit,npz:tiny.npz",
    f"--workdir={workdir.name}",
    "from_pretrained('folder')",
  ):
    assert words in text


@pytest.mark.parametrize("to", NAMES)
def test_nothing_of_this_machine_is_written(to, make_workdir, tmp_path):
  """No folder's name but the last."""
  workdir = make_workdir(
    "finetune", "vit", CLASSES, init_from="/home/me/secret/A"
  )
  out = tmp_path / NAMES[to]
  export(workdir, to, out)
  if to == "orbax":  # which notes where it wrote itself
    metadata = checkpoints.read_tree(out)[1]
    assert str(tmp_path) not in json.dumps(metadata)
    return
  root = str(pathlib.Path(command.__file__).parent)
  for name, written in content(out).items():
    for word in (str(tmp_path), str(pathlib.Path.home()), "secret", root):
      assert word.encode() not in written, name


def content(path):
  paths = path.iterdir() if path.is_dir() else [path]
  return {p.name: p.read_bytes() for p in paths}


def snapshot(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file()
  }


def test_only_an_export_is_replaced(workdir, tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("years")
  (tmp_path / "a.npz").mkdir()
  (tmp_path / "note").write_text("x")
  np.savez(tmp_path / "data.npz", images=np.zeros(3))
  for name in ("trained", "linked"):  # by others since, or pointed at
    export(workdir, "transformers", tmp_path / name)
  (tmp_path / "trained" / "checkpoint-500").mkdir()
  (tmp_path / "link").symlink_to("linked")
  export(workdir, "orbax", tmp_path / "orbax")
  before = snapshot(tmp_path)
  for to, name in (
    ("transformers", "mine"),
    ("orbax", "mine"),
    ("orbax", "note"),
    ("npz", "a.npz"),
    ("npz", "data.npz"),
    ("transformers", "trained"),
    ("transformers", "link"),
    ("transformers", "orbax"),
  ):
    with pytest.raises(UserError, match="replaces nothing else"):
      export(workdir, to, tmp_path / name, overwrite=True)
  assert snapshot(tmp_path) == before


def test_runs_are_never_replaced(make_workdir):
  workdir = make_workdir("finetune", "vit", CLASSES)
  export(workdir, "reference", workdir / "model.safetensors")  # beside them
  step = workdir / "checkpoints" / "7"
  before = snapshot(workdir)
  for to in ("orbax", "transformers"):
    for place in (workdir, workdir / "checkpoints" / "7", step / "more"):
      with pytest.raises(UserError, match="is a run, or lies among a run's"):
        export(workdir, to, place, overwrite=True)
    with pytest.raises(UserError, match="is a run, or lies among a run's"):
      export(workdir, to, workdir / "checkpoints" / "99")
  assert snapshot(workdir) == before


@pytest.mark.parametrize("to", NAMES)
def test_an_export_is_replaced_as_a_whole_and_on_demand(
  to, workdir, tmp_path, monkeypatch, request
):
  if to == "timm":
    request.getfixturevalue("torch")
  out = tmp_path / NAMES[to]

  def check_failure():
    before = snapshot(tmp_path)
    with monkeypatch.context() as patch:
      patch.setattr(command.files.os, "replace", full)
      with pytest.raises(UserError, match="cannot be written: No space left"):
        export(workdir, to, out, overwrite=True)
    assert snapshot(tmp_path) == before
    return before.keys()

  assert not check_failure()
  export(workdir, to, out)
  with pytest.raises(UserError, match="exists: --overwrite"):
    export(workdir, to, out)
  names = {name.split("/")[0] for name in check_failure()}
  export(workdir, to, out, overwrite=True)
  assert {path.name for path in tmp_path.iterdir()} == names


def full(*_, **__):
  raise OSError(28, "No space left on device")


def test_what_cannot_be_exported(make_workdir, tmp_path):
  workdir = make_workdir("finetune", "cait", CLASSES)
  out = tmp_path / "out"
  for to, path, words in (
    ("transformers", out, "transformers has no cait"),
    ("npz", out, "must end with .npz for --to=npz"),
    ("npz", tmp_path / "none" / "x.npz", "cannot be written: No such file"),
  ):
    with pytest.raises(UserError, match=words):
      export(workdir, to, path)
  lsa = make_workdir("finetune", "vit", CLASSES, locality="lsa")
  for to in ("reference", "timm", "transformers"):
    name = "hf" if to == "transformers" else "x.pth"
    with pytest.raises(UserError, match=r"no counterpart of model\.locality"):
      export(lsa, to, tmp_path / name)
  assert [p.name for p in tmp_path.iterdir()] == []
  (tmp_path / "empty").mkdir()
  (tmp_path / "begun").mkdir()
  (tmp_path / "begun" / "config.json").write_text("{}")
  for folder, words in (
    ("nowhere", "no file or folder"),
    ("empty", "neither a workdir nor"),
    ("begun", "no finished checkpoint"),
  ):
    with pytest.raises(UserError, match=words):
      export(tmp_path / folder, "orbax", out)
  export(workdir, "orbax", out)
  with pytest.raises(UserError, match="must be a run or one"):
    export(out, "npz", tmp_path / "x.npz")


def test_command_line(workdir, tmp_path, capsys):
  out = tmp_path / "x.npz"
  line = [f"--workdir={workdir}", "--to=npz", f"--out={out}"]
  command.main(line)
  assert "SHA-256" in capsys.readouterr().out
  with pytest.raises(SystemExit) as stop:
    command.main(line)
  assert stop.value.code == 2
  assert capsys.readouterr().err.startswith(f"error: {out} exists")
  with pytest.raises(SystemExit) as stop:
    command.main([*line[:1], "--to=tflite", *line[2:]])
  assert stop.value.code == 2
  assert "choose from" in capsys.readouterr().err


WITHOUT_PACKAGE = """
import sys
sys.modules.update(dict.fromkeys(["vit_ssl_jax", "flax"]))  # not to be imported
import jax.export, numpy as np
images = np.load("images.npy")
for name in sys.argv[1:]:
  with open(name + ".stablehlo", "rb") as file:
    call = jax.export.deserialize(bytearray(file.read())).call
  np.savez(name + ".npz", one=call(images[:1]), five=call(images))
"""


def test_programs_run_without_the_package(run, tmp_path):
  wanted = {}
  for arch in tiny.SIZES:
    workdir = run("finetune", arch)
    export(workdir, "stablehlo", tmp_path / f"{arch}.stablehlo")
    images = images_of(workdir)
    wanted[arch] = jax.nn.softmax(ours(workdir)[2](images))
    data = (tmp_path / f"{arch}.stablehlo").read_bytes()
    program = jax.export.deserialize(bytearray(data))
    assert program.platforms == programs.PLATFORMS
  about = json.loads((tmp_path / "vit.stablehlo.json").read_text())
  assert json.loads(about["metadata"]["classes"]) == CLASSES
  np.save(tmp_path / "images.npy", images)
  line = [sys.executable, "-I", "-c", WITHOUT_PACKAGE, *wanted]
  subprocess.run(line, cwd=tmp_path, check=True)
  for arch, want in wanted.items():
    assert np.ptp(want, 0).max() > 1e-4, arch  # images make a difference
    with np.load(tmp_path / f"{arch}.npz") as outputs:
      np.testing.assert_allclose(outputs["one"], want[:1], atol=1e-6)
      np.testing.assert_allclose(outputs["five"], want, atol=1e-6)


def test_classes_of_any_name(make_workdir, tmp_path):
  """Thousands of them, in any script, and bytes that are no letters."""
  classes = [f"Käfer {i}" for i in range(2998)] + ["'\n\"", "b\udcff"]
  workdir = make_workdir("finetune", "vit", classes)
  for to in ("npz", "reference", "transformers"):
    out = tmp_path / NAMES[to]
    export(workdir, to, out)
    found = networks.read(out)
    assert found.classes[:2999] == tuple(classes[:2999])
    assert found.classes[2999].startswith("b")


def test_commands_are_quoted_for_a_shell(make_workdir):
  workdir = make_workdir(
    "pretrain", "vit", CLASSES, dataset="folder:/x/it's $(my) dir"
  )
  line = shlex.split(provenance.commands(workdir))
  assert "--config=configs/pretrain.py:vit,folder:it's $(my) dir" in line
  assert line[:3] == ["python", "-m", "main"]


def test_commands_that_trained(make_workdir):
  """The pretraining's too, by the names of folders alone."""
  before = make_workdir("pretrain", "vit", CLASSES)
  step = f"{before}/checkpoints/7"
  workdir = make_workdir("finetune", "vit", CLASSES, init_from=step)
  first, second = provenance.commands(workdir).splitlines()
  start = "python -m main --config=configs/"
  assert first.startswith(f"{start}pretrain.py:vit,npz:tiny.npz ")
  assert first.endswith(f" --workdir={before.name}")
  assert f"--config.init_from={before.name}/checkpoints/7 " in second
