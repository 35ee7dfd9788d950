"""Weights from anywhere begin a run: by name, strictly, resized, said so."""

import functools
import pathlib

import jax
import numpy as np
import paper
import pytest
from flax import traverse_util

from vit_ssl_jax import cli, interop, models, train
from vit_ssl_jax.augment import pipelines as views
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import model as networks, suites
from vit_ssl_jax.export import export
from vit_ssl_jax.interop import (
  metadata as provenance,
  pretrained,
  read,
  write,
)
from vit_ssl_jax.run import checkpoints
from vit_ssl_jax.train import initial

CLASSES = ["cat", "dog", "eel"]
ARCHITECTURES = ["vit", "swin", "cait"]


@pytest.fixture
def said(monkeypatch):
  """What a run says, line by line."""
  lines = []
  monkeypatch.setattr(cli, "log", lines.append)
  return lines


@pytest.fixture(scope="module")
def run(make_workdir):
  """(stage, arch) -> a run that no test changes."""
  return functools.cache(lambda stage, arch: make_workdir(stage, arch, CLASSES))


def model_of(workdir, **sizes):
  about = pretrained.read(workdir).about["model"] | {"num_classes": 0} | sizes
  return models.build(about.pop("name"), **about)


def fit(path, model):
  return pretrained.fit(pretrained.read(path), model, f"init_from={path}")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_authors_own_files(arch, torch, golden_dir, tmp_path):
  """Their names in their files give their features and logits."""
  arrays, state, sizes = paper.golden(golden_dir, arch)
  model = models.build(arch, **sizes | {"num_classes": 0})

  def load(content):
    torch.save(content, tmp_path / "x.pth")
    params, notes = fit(tmp_path / "x.pth", model)
    return params, [note.partition("left out: ")[2] for note in notes]

  def check(apply, params, name):
    ours = jax.jit(apply)({"params": params}, arrays["images_32"])
    np.testing.assert_allclose(ours, arrays[name], rtol=0, atol=1e-5)

  backbone = {k: x for k, x in state.items() if not k.startswith("head.")}
  params, left_out = load(paper.pretrained(torch, backbone))
  names = "student, optimizer, args, view_pred_loss, fp16_scaler, ..."
  assert left_out == [names]
  features = functools.partial(model.apply, method="features")
  check(features, params, "features_32")
  params, left_out = load(paper.finetuned(torch, state))
  assert left_out == ["optimizer_state_dict, scheduler"]
  classifier = model.clone(num_classes=sizes["num_classes"])
  check(classifier.apply, params, "logits_32")
  for prefix in ("", "module."):
    bare = {prefix + k: torch.from_numpy(x) for k, x in state.items()}
    same, left_out = load(bare)
    assert left_out == []
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_another_image_size(arch, run, tmp_path):
  """As if the model of the first size saw the larger images."""
  workdir = run("pretrain", arch)
  export(workdir, "reference", tmp_path / "x.pth")
  small, large = model_of(workdir), model_of(workdir, image_size=16)
  images = np.float32(np.random.default_rng(0).normal(size=(2, 16, 16, 3)))
  given = pretrained.read(workdir).arrays
  want = jax.jit(small.apply)({"params": given}, images)
  for path in (workdir, tmp_path / "x.pth"):
    params, lines = fit(path, large)
    found = jax.jit(large.apply)({"params": params}, images)
    np.testing.assert_allclose(found, want, atol=1e-6)
    positions = (
      f"init_from={path}: position embeddings are resized from 2 x 2 patches"
      " to 4 x 4"
    )
    assert lines == ([] if arch == "swin" else [positions])


@pytest.mark.parametrize("to", ["reference", "transformers", "npz"])
def test_another_window(to, torch, run, tmp_path):
  """Tables as PyTorch's bicubic interpolation resizes them."""
  workdir = run("pretrain", "swin")
  out = tmp_path / {"transformers": "folder", "npz": "x.npz"}.get(to, "x.pth")
  export(workdir, to, out)
  model = model_of(workdir, image_size=16, window_size=4)
  params, lines = fit(out, model)
  assert len(lines) == 2
  assert "of stage 0 are resized from windows of 2 to 4" in lines[0]
  name = "relative_position_bias_table"
  old = pretrained.read(workdir).arrays["blocks_0_0"]["attn"][name]
  new = params["blocks_0_0"]["attn"][name]
  rows, heads = old.shape[-2:]
  side = round(rows**0.5)
  square = torch.from_numpy(old.reshape(-1, side, side, heads))
  want = torch.nn.functional.interpolate(
    square.permute(0, 3, 1, 2), size=(7, 7), mode="bicubic"
  )
  want = want.permute(0, 2, 3, 1).reshape(-1, 49, heads).numpy()
  np.testing.assert_allclose(new.reshape(want.shape), want, atol=1e-6)


def test_what_does_not_fit_is_listed(run, tmp_path):
  workdir = run("pretrain", "vit")
  export(workdir, "reference", tmp_path / "x.safetensors")
  given = pretrained.read(tmp_path / "x.safetensors")
  state = dict(given.arrays)
  state["blocks.0.extra"] = state.pop("norm.bias")
  state["norm.weight"] = np.ones(9, np.float32)
  write.write_pth(tmp_path / "y.pth", state, {})
  with pytest.raises(UserError) as error:
    fit(tmp_path / "y.pth", model_of(workdir))
  for words in (
    "missing norm.bias",
    "left over blocks.0.extra",
    "norm.weight has shape (9,) and not (8,)",
  ):
    assert words in str(error.value)


@pytest.mark.parametrize("to", ["reference", "npz"])
def test_another_architecture(to, run, tmp_path):
  out = tmp_path / ("x.npz" if to == "npz" else "x.pth")
  for arch in ARCHITECTURES:
    export(run("pretrain", arch), to, out, overwrite=True)
    for other in set(ARCHITECTURES) - {arch}:
      model = model_of(run("pretrain", other))
      with pytest.raises(UserError, match=f"no weights of a {other} but those"):
        fit(out, model)
  write.write_pth(out, {"x.weight": np.ones(3, np.float32)}, {})
  with pytest.raises(UserError, match=r"no weights of a vit$"):
    fit(out, models.build("vit"))


def test_heads_that_no_shape_tells(run, tmp_path):
  workdir = run("pretrain", "vit")
  export(workdir, "timm", tmp_path / "x.safetensors")
  with pytest.raises(UserError, match="num_heads=2 and not 4"):
    fit(tmp_path / "x.safetensors", model_of(workdir, num_heads=4))


def test_folders_that_are_read_otherwise(make_workdir, tmp_path):
  """A run counts as a run, whatever else lies in its folder."""
  workdir = make_workdir("finetune", "vit", CLASSES)
  export(workdir, "reference", workdir / "model.safetensors")
  (workdir / "exports").mkdir()
  export(workdir, "orbax", workdir / "exports" / "1")
  assert pretrained.read(workdir).workdir == workdir
  assert pretrained.read(workdir / "exports" / "1").workdir is None
  export(workdir, "stablehlo", tmp_path / "x.stablehlo")
  with pytest.raises(UserError, match="a compiled program, not weights"):
    pretrained.read(tmp_path / "x.stablehlo")


@pytest.mark.parametrize(
  "tree",
  [
    {"a": np.ones(2), "a/b": np.ones(2)},
    {"teacher/x": np.ones(2)},
    {"head/kernel": np.ones(2), "cls_token/x": np.ones(2)},
    {"params": np.ones(2), "x/y": np.ones(2)},
  ],
)
def test_trees_of_other_programs(tree, tmp_path):
  write.write_npz(tmp_path / "x.npz", tree, {})
  with pytest.raises(UserError, match=r"x\.npz"):
    fit(tmp_path / "x.npz", models.build("vit"))


@pytest.mark.parametrize(
  ("key", "text"),
  [
    ("config", "{"),
    ("model", "[]"),
    ("mean", "[0.5]"),
    ("std", '["a", "b", "c"]'),
    ("classes", '["cat", "dog"]'),
    ("classes", "[1, 2, 3]"),
  ],
)
def test_metadata_that_somebody_changed(key, text, run, tmp_path):
  out = tmp_path / "x.npz"
  export(run("finetune", "vit"), "npz", out)
  found = read.read_file(out)
  write.write_npz(out, found.arrays, found.metadata | {key: text})
  with pytest.raises(UserError, match=f"metadata field '{key}' is invalid"):
    pretrained.read(out)


def test_back_from_transformers(torch, run, tmp_path):
  """Which drops what we say; its own config says enough to go on."""
  import transformers

  workdir = run("finetune", "swin")
  export(workdir, "transformers", tmp_path / "ours")
  kind = transformers.AutoModelForImageClassification
  kind.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
  images = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
  images.save_pretrained(tmp_path / "theirs")
  found = networks.read(tmp_path / "theirs")
  assert found.classes == tuple(CLASSES)
  pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  want = networks.read(workdir).logits(pictures, 3)
  np.testing.assert_allclose(found.logits(pictures, 3), want, atol=1e-5)
  with pytest.raises(UserError, match="does not name its data set"):
    suites.open_suite("test", found)
  with_pooler = transformers.SwinModel.from_pretrained(tmp_path / "ours")
  with_pooler.save_pretrained(tmp_path / "backbone")
  with pytest.raises(UserError, match="does not describe itself"):
    networks.read(tmp_path / "backbone")


@pytest.mark.parametrize(
  ("classes", "keep", "words"),
  [
    (["cat", "dog", "eel"], True, "its head of 3 classes is kept"),
    (["cat", "dog"], False, "a new head of 2 classes, as the old one has 3"),
    (["dog", "cat", "eel"], False, "have other names or another order"),
  ],
)
def test_heads(classes, keep, words):
  params = {"head": {"kernel": np.zeros((8, 3))}}
  found, line = pretrained.head(params, {"classes": CLASSES}, classes)
  assert found is keep
  assert words in line
  if len(classes) == 3:  # of foreign weights names are unknown
    found, line = pretrained.head(params, {}, classes)
    assert found
    assert "their names are unknown" in line
  assert pretrained.head({}, {}, classes) == (False, "")


def test_orbax_of_others(run, tmp_path):
  """A checkpoint of parameters alone, as any program of JAX writes it."""
  workdir = run("finetune", "vit")
  params = pretrained.read(workdir).arrays
  for name, tree in (("bare", params), ("within", {"params": params})):
    checkpoints.write_tree(tmp_path / name, tree, {})
    found, _ = fit(tmp_path / name, model_of(workdir))
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_damaged_folders(run, tmp_path):
  workdir = run("finetune", "vit")
  export(workdir, "transformers", tmp_path / "folder")
  export(workdir, "orbax", tmp_path / "orbax")
  config = tmp_path / "folder" / "config.json"
  text = config.read_text()
  for content, words in (
    ("{", "config.json cannot be read"),
    ("{}", "model_type None"),
    (text.replace('"gelu"', '"relu"'), "hidden_act='relu'"),
  ):
    config.write_text(content)
    with pytest.raises(UserError, match=words):
      pretrained.read(tmp_path / "folder")
  described = tmp_path / "orbax" / "state" / "_METADATA"
  described.write_bytes(described.read_bytes()[:100])
  with pytest.raises(UserError, match="is damaged"):
    pretrained.read(tmp_path / "orbax")


def test_fine_tuning_goes_on_with_its_head(
  make_workdir, finetune_tiny, tmp_path, said
):
  source = make_workdir("finetune", "vit", ["0", "1"])
  finetune_tiny.update(init_from=str(source), max_steps=1)
  finetune_tiny.optim.update(learning_rate=0.0, min_learning_rate=0.0)
  train.run(finetune_tiny, tmp_path / "B")
  assert f"init_from={source}: its head of 2 classes is kept" in said
  after = pretrained.read(tmp_path / "B").arrays
  before = pretrained.read(source).arrays
  jax.tree.map(np.testing.assert_array_equal, after, before)


def test_classifiers_of_files_that_say_nothing(
  torch, golden_dir, tmp_path, tiny_npz, monkeypatch
):
  """--arch and --dataset then say it, and the recipe has the sizes."""
  _, state, sizes = paper.golden(golden_dir, "swin")
  path = tmp_path / "best.pth"
  torch.save(paper.finetuned(torch, two_classes(state)), path)
  with pytest.raises(UserError, match="does not describe itself: give --arch"):
    networks.read(path)
  with pytest.raises(
    UserError, match="dataset='mnist' is unknown: possible are"
  ):
    networks.read(path, "swin", "mnist")

  def build(arch, _, dataset, original=networks.build):
    return original(arch, {"model": sizes}, dataset)

  monkeypatch.setattr(networks, "build", build)
  found = networks.read(path, "swin", tiny_npz)
  assert found.classes == ("0", "1")  # as the set calls them
  images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
  model = models.build("swin", **sizes | {"num_classes": 2})
  inputs = views.evaluation_view(images, found.data["mean"], found.data["std"])
  params = interop.from_torch(two_classes(state), model)
  want = jax.jit(model.apply)({"params": params}, inputs)
  np.testing.assert_allclose(found.logits(images, 4), want, atol=1e-5)


def two_classes(state):
  """A golden classifier with the first two of its classes."""
  return {k: x[:2] if k.startswith("head.") else x for k, x in state.items()}


def test_a_head_unlike_the_data_set(torch, run, tmp_path, tiny_npz):
  workdir = run("finetune", "vit")
  given = pretrained.read(workdir)
  write.write_npz(
    tmp_path / "x.npz",
    traverse_util.flatten_dict(given.arrays, sep="/"),
    provenance.to_text(given.about | {"classes": []}),
  )
  network = networks.read(tmp_path / "x.npz", dataset=tiny_npz)
  with pytest.raises(UserError, match=r"has 3 classes, but its data set has 2"):
    networks.check_classifier(network)


def test_what_is_no_model_at_all(tmp_path):
  write.write_npz(tmp_path / "x.npz", {"train_images": np.zeros((2, 8, 8))}, {})
  with pytest.raises(UserError, match="holds no weights of any of vit, swin"):
    networks.read(tmp_path / "x.npz")


def test_seen_images_are_warned_of(make_workdir, finetune_tiny, tmp_path, said):
  """Also where an exported file knows the folder's last name alone."""
  source = make_workdir("pretrain", "vit", CLASSES, dataset="folder:/a/pics")
  export(source, "npz", tmp_path / "x.npz")
  finetune_tiny.dataset = "folder:/b/pics"
  finetune_tiny.test_fraction = 0.5
  for path in (source, tmp_path / "x.npz"):
    said.clear()
    finetune_tiny.init_from = str(path)
    initial.read(finetune_tiny, models.from_config(finetune_tiny, 0))
    assert any("has seen images that this run tests on" in x for x in said)


def test_another_arch_than_the_file_says(run, tmp_path):
  workdir = run("finetune", "vit")
  out = tmp_path / "x.npz"
  export(workdir, "npz", out)
  with pytest.raises(UserError, match=r"--arch=swin: .* is a vit"):
    networks.read(out, "swin")
  assert pathlib.Path(networks.read(out, "vit").path) == out
