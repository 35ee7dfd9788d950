"""Agreement with the paper's own PyTorch code (see golden/README.md).

Reads every size and hyperparameter from the files, so that it works on any
folder of their format: set GOLDEN_DIR.
"""

import functools
import json
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vit_ssl_jax import interop, models, recipes
from vit_ssl_jax.augment import mix
from vit_ssl_jax.train import finetune, losses, optimizers, pretrain, schedules

SIZES = (
  "image_size",
  "patch_size",
  "embed_dim",
  "depth",
  "depths",
  "depth_token_only",
  "num_heads",
  "window_size",
  "mlp_ratio",
  "layer_scale_init",
  "num_classes",
)
ARCHITECTURES = ["vit", "swin", "cait"]


def load(golden_dir, name):
  """A golden file's arrays, and its JSON string under "config" or "hyper"."""
  with np.load(golden_dir / name) as f:
    arrays = {key: f[key] for key in f.files}
  for key in ("config", "hyper"):
    if key in arrays:
      return arrays, json.loads(str(arrays[key]))
  return arrays, None


def build(name, sizes):
  """A model of the sizes in a golden file's JSON."""
  return models.build(name, **sizes_in(sizes))


def sizes_in(hyper):
  return {k: v for k, v in hyper.items() if k in SIZES}


def under(arrays, prefix):
  """The arrays whose names begin with a prefix, without it."""
  return {
    key.removeprefix(prefix): value
    for key, value in arrays.items()
    if key.startswith(prefix)
  }


def assert_close(ours, golden):
  """Largest difference 1e-4, relative L2 error 1e-5."""
  ours, golden = np.asarray(ours), np.asarray(golden)
  assert ours.shape == golden.shape
  assert np.max(np.abs(ours - golden)) < 1e-4
  assert np.linalg.norm(ours - golden) < 1e-5 * np.linalg.norm(golden)


def assert_same_weights(ours, golden):
  """Every tensor's relative L2 error is under 1e-3.

  The attention's key bias has no gradient in exact arithmetic, and Adam turns
  rounding noise into steps, so that third of each qkv.bias is left out.
  """
  assert ours.keys() == golden.keys()
  for name, want in golden.items():
    have = ours[name]
    if name.endswith("qkv.bias"):
      query, _, value = np.split(np.arange(len(want)), 3)
      keep = np.concatenate([query, value])
      have, want = have[keep], want[keep]
    error = np.linalg.norm(have - want)
    assert error < 1e-3 * max(np.linalg.norm(want), 1e-12), name


def features(model, params, images):
  return model.apply({"params": params}, images, method="features")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_model(golden_dir, name):
  arrays, sizes = load(golden_dir, f"model_{name}.npz")
  model = build(name, sizes)
  given = under(arrays, "param/")
  params = interop.from_torch(given, model)
  compared = 0
  for key, want in arrays.items():
    kind, _, side = key.rpartition("_")
    images = arrays.get(f"images_{side}")
    outputs = {
      "features": lambda params, x: features(model, params, x),
      "logits": lambda params, x: model.apply({"params": params}, x),
      "last_attention": lambda params, x: models.attention(model, params, x),
    }
    if kind in outputs:
      assert_close(jax.jit(outputs[kind])(params, images), want)
      compared += 1
  assert compared >= 2
  back = interop.to_torch(params, model)
  assert back.keys() == given.keys()
  assert all(np.array_equal(back[key], given[key]) for key in given)


def test_cait_on_small_views(golden_dir):
  """The reference cuts position embeddings off; so does a smaller model's."""
  arrays, sizes = load(golden_dir, "model_cait.npz")
  small = [key for key in arrays if key.endswith("_sliced_pos_embed")]
  for key in small:
    side = int(key.split("_")[1])
    model = build("cait", sizes | {"image_size": side})
    given = under(arrays, "param/")
    tokens = (side // model.patch_size) ** 2
    given["pos_embed"] = given["pos_embed"][:, :tokens]
    params = interop.from_torch(given, model)
    apply = jax.jit(functools.partial(features, model))
    assert_close(apply(params, arrays[f"images_{side}"]), arrays[key])
  assert small


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_initialization(golden_dir, name):
  golden = json.loads((golden_dir / f"init_{name}.json").read_text())
  model = models.build(name, **sizes_of(name, golden))
  images = jnp.zeros((1, model.image_size, model.image_size, 3))
  fresh = jax.jit(lambda key: model.init(key, images)["params"])
  seeds = [
    {
      key: value
      for key, value in interop.to_torch(
        fresh(jax.random.key(seed)), model
      ).items()
      if value.dtype == np.float32  # the rest is constant
    }
    for seed in range(3)
  ]
  assert seeds[0].keys() == golden.keys()
  groups = {}
  for key, want in golden.items():
    ours = np.stack([params[key] for params in seeds])
    assert list(ours.shape[1:]) == want["shape"], key
    error = 5 * want["std"] / np.sqrt(ours.size / 3)
    assert abs(ours.mean() - want["mean"]) <= error + 1e-9, key
    kind = re.sub(r"\d+", "N", key), ours.shape
    groups.setdefault(kind, []).append((ours.std(), want["std"]))
  for kind, deviations in groups.items():
    # Blocks count together: of one small tensor the standard deviation itself
    # is uncertain. What is left is three standard errors of the difference.
    ours, theirs = np.sqrt(np.mean(np.square(deviations), axis=0))
    count = len(deviations) * np.prod(kind[1])
    slack = max(0.1, 4.5 / np.sqrt(2 * count))
    assert np.isclose(ours, theirs, rtol=slack, atol=1e-9), kind


def sizes_of(name, golden):
  """A model's sizes from the shapes of its parameters."""
  shape = {key: value["shape"] for key, value in golden.items()}
  classes = shape.get("head.bias", [0])[0]
  if name == "swin":
    return {"num_classes": classes, **swin_sizes_of(shape)}
  tokens, width = shape["pos_embed"][1:]
  if name == "vit":
    side, patch = (tokens - 1) ** 0.5, shape["patch_embed.proj.weight"][-1]
    of_its_own = {"num_heads": 1}  # shows neither in shapes nor in values
  else:
    side, patch = tokens**0.5, (shape["patch_embed.1.weight"][1] / 3) ** 0.5
    of_its_own = {
      "num_heads": shape["blocks.0.attn.proj_l.bias"][0],
      "depth_token_only": count(shape, r"blocks_token_only\.\d+\.gamma_1"),
      "layer_scale_init": golden["blocks.0.gamma_1"]["mean"],
    }
  return {
    "image_size": round(side * patch),
    "patch_size": round(patch),
    "embed_dim": width,
    "depth": count(shape, r"blocks\.\d+\.norm1\.bias"),
    "mlp_ratio": shape["blocks.0.mlp.fc1.bias"][0] / width,
    "num_classes": classes,
    **of_its_own,
  }


def swin_sizes_of(shape):
  width, _, patch, _ = shape["patch_embed.proj.weight"]
  stages = 1 + count(shape, r"layers\.\d+\.downsample\.norm\.bias")
  tables = [
    shape[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"]
    for stage in range(stages)
  ]
  windows = [(round(rows**0.5) + 1) // 2 for rows, _ in tables]
  return {
    # Of a window that shrank to its stage the stage's size shows; of the
    # others any size will do.
    "image_size": 2 ** (stages - 1) * windows[-1] * patch,
    "patch_size": patch,
    "embed_dim": width,
    "depths": [
      count(shape, rf"layers\.{stage}\.blocks\.\d+\.norm1\.bias")
      for stage in range(stages)
    ],
    "num_heads": [heads for _, heads in tables],
    "window_size": windows[0],
    "mlp_ratio": shape["layers.0.blocks.0.mlp.fc1.bias"][0] / width,
  }


def count(names, pattern):
  """How many names a regular expression matches."""
  return sum(bool(re.fullmatch(pattern, name)) for name in names)


def projection_head(state):
  hidden, bottleneck = state["mlp.0.bias"], state["mlp.4.bias"]
  outputs = state["last_layer.weight_v"]
  return models.ProjectionHead(len(outputs), len(hidden), len(bottleneck))


def test_projection_head(golden_dir):
  arrays, _ = load(golden_dir, "projection_head.npz")
  head = projection_head(under(arrays, "param/"))
  params = interop.from_torch(under(arrays, "param/"), head)
  outputs = head.apply({"params": params}, arrays["inputs"])
  np.testing.assert_allclose(outputs, arrays["outputs"], rtol=0, atol=1e-5)


def test_dino_loss(golden_dir):
  arrays, _ = load(golden_dir, "dino_loss.npz")
  targets = losses.centered_targets(
    arrays["teacher"],
    arrays["center"],
    float(arrays["teacher_temp"]),
  )
  student, targets = arrays["student"].swapaxes(0, 1), targets.swapaxes(0, 1)
  loss = losses.dino(student, targets, float(arrays["student_temp"]))
  np.testing.assert_allclose(loss, arrays["loss"], rtol=0, atol=1e-5)
  center = losses.update_center(
    arrays["center"], arrays["teacher"], float(arrays["center_momentum"])
  )
  np.testing.assert_allclose(center, arrays["new_center"], rtol=0, atol=1e-5)


def test_schedules(golden_dir):
  arrays, _ = load(golden_dir, "schedules.npz")
  epochs, per_epoch = int(arrays["epochs"]), int(arrays["steps_per_epoch"])
  steps = epochs * per_epoch
  note = json.loads(str(arrays["note"]))
  pretraining, tuning = note["pretrain"], note["finetune"]
  peak, end = number(pretraining, "base lr"), number(pretraining, "min")
  peak *= number(pretraining, "(x") / 256
  functions = {
    "pretrain_lr": schedules.pretrain_learning_rate(
      peak, end, steps, round(before(pretraining, " warm-up")) * per_epoch
    ),
    "pretrain_weight_decay": schedules.cosine(
      number(pretraining, "weight decay"),
      before(pretraining, "; momentum"),
      steps,
    ),
    "teacher_momentum": schedules.cosine(
      number(pretraining, "momentum"), before(pretraining, "; teacher"), steps
    ),
    "teacher_temp_per_epoch": schedules.teacher_temperature(
      number(pretraining, "temperature"),
      before(pretraining, " over"),
      round(number(pretraining, "over")),
    ),
    "finetune_lr": schedules.finetune_learning_rate(
      number(tuning, "lr"),
      number(tuning, "min"),
      steps,
      round(before(tuning, " warm-up")) * per_epoch,
    ),
  }
  for name, function in functions.items():
    golden = arrays[name]
    table = function(np.arange(len(golden)))
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, golden, rtol=0, atol=1e-9)
    table = jax.jit(function)(jnp.arange(len(golden)))
    assert table.dtype == jnp.float32
    np.testing.assert_allclose(table, golden, rtol=1e-6, atol=1e-12)


def number(text, name):
  """The number that follows a name in a note."""
  word = text.split(name, 1)[1].split()[0]
  return float(word.strip("x;,)").split("/")[0])


def before(text, name):
  """The number that stands before a name in a note."""
  return float(text.split(name, 1)[0].split()[-1])


def pretrain_config(hyper):
  """A trajectory's config; for a batch of 256 its rate is not scaled."""
  config = recipes.get("pretrain", "vit,cifar10")
  config.update(epochs=hyper["epochs"], batch_size=256, dtype="float32")
  config.student_temperature = hyper["student_temp"]
  config.optim.update(
    learning_rate=hyper["base_lr"],
    min_learning_rate=hyper["min_lr"],
    warmup_epochs=hyper["warmup_epochs"],
    weight_decay=hyper["weight_decay"][0],
    weight_decay_end=hyper["weight_decay"][1],
    clip_per_tensor=hyper["clip_per_tensor"],
    freeze_last_layer_epochs=hyper["freeze_last_layer_epochs"],
  )
  config.teacher.update(
    momentum=hyper["momentum"][0],
    warmup_temperature=hyper["teacher_temp"][0],
    temperature=hyper["teacher_temp"][1],
    temperature_warmup_epochs=hyper["teacher_temp_warmup_epochs"],
    center_momentum=hyper["center_momentum"],
    drop_path=False,
  )
  config.head.update(
    out_dim=hyper["out_dim"],
    hidden_dim=hyper["head_hidden_dim"],
    bottleneck_dim=hyper["head_bottleneck_dim"],
  )
  return config


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_pretrain_trajectory(golden_dir, name):
  arrays, hyper = load(golden_dir, f"pretrain_trajectory_{name}.npz")
  config = pretrain_config(hyper)
  config.model = ml_collections.ConfigDict(sizes_in(hyper) | {"name": name})
  per_epoch = hyper["steps_per_epoch"]
  setup = pretrain.make_setup(config, per_epoch)
  model, head = setup.model, setup.head
  for ours, golden, every in (
    ("learning_rate", "lr", 1),
    ("weight_decay", "weight_decay", 1),
    ("momentum", "momentum", 1),
    ("temperature", "teacher_temp", per_epoch),
  ):
    expected = arrays[golden]
    found = setup.schedules[ours](every * np.arange(len(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
  init = {
    part: interop.from_torch(under(arrays, f"init/{prefix}."), module)
    for part, prefix, module in (
      ("backbone", "backbone", model),
      ("head", "mlphead", head),
    )
  }
  state = jax.jit(functools.partial(pretrain.init_state, setup))(
    jax.random.key(0)
  )
  state = state.replace(student=init, teacher=init)
  update = jax.jit(functools.partial(pretrain.update, setup))
  loss, norm = [], []
  for global_views, local_views in zip(
    arrays["global_views"], arrays["local_views"], strict=True
  ):
    views = [x.swapaxes(0, 1) for x in (global_views, local_views)]
    state, metrics = update(state, *views, jax.random.key(0))
    loss.append(metrics["loss"])
    norm.append(metrics["gradient_norm"])
  np.testing.assert_allclose(loss, arrays["losses"], rtol=0, atol=1e-4)
  np.testing.assert_allclose(norm, arrays["grad_norms_before_clip"], rtol=1e-4)
  np.testing.assert_allclose(state.center, arrays["center"], rtol=0, atol=1e-4)
  for network in ("student", "teacher"):
    params = getattr(state, network)
    for part, prefix, module in (
      ("backbone", "backbone", model),
      ("head", "mlphead", head),
    ):
      assert_same_weights(
        interop.to_torch(params[part], module),
        under(arrays, f"{network}/{prefix}."),
      )


def test_finetune_trajectory(golden_dir):
  arrays, hyper = load(golden_dir, "finetune_trajectory_vit.npz")
  model = build("vit", hyper)
  config = ml_collections.ConfigDict(
    {"label_smoothing": hyper["label_smoothing"], "accumulate_steps": 1}
    | {"on_nonfinite": "stop"}
  )

  def learning_rate(step):
    return jnp.asarray(arrays["lr"], jnp.float32)[step]

  optimizer = optimizers.finetune(learning_rate, hyper["weight_decay"])
  params = interop.from_torch(under(arrays, "init/"), model)
  setup = finetune.Setup(config, model, learning_rate, optimizer)
  state = finetune.state_of(params, {}, optimizer)
  update = jax.jit(functools.partial(finetune.update, setup))
  loss = []
  for i, mode in enumerate(arrays["mode"]):
    images = jnp.asarray(arrays["images"][i])
    targets = jax.nn.one_hot(arrays["labels"][i], hyper["num_classes"])
    if mode == "mixup":
      images, targets = mix.mixup(
        images, targets, arrays["perm"][i], arrays["lam"][i].astype(np.float32)
      )
    if mode == "cutmix":
      box = arrays["cutmix_box_rows_cols"]
      images, targets = mix.cutmix(images, targets, arrays["perm"][i], box)
    state, metrics = update(state, images, targets, jax.random.key(0))
    loss.append(metrics["loss"])
  np.testing.assert_allclose(loss, arrays["losses"], rtol=0, atol=1e-4)
  assert_same_weights(
    interop.to_torch(state.params, model), under(arrays, "final/")
  )
