"""Default hyperparameters for custom data sets (`folder:` and `npz:`).

In their recipes these keys are None. `resolve` gives them values, each of which
may follow from those before it; what the user has set stays.
docs/lab/custom_datasets.md has the measurements behind the rule.
"""

import functools
import math

from ml_collections import config_dict

from vit_ssl_jax import models
from vit_ssl_jax.recipes import keys

# Keys without a value, beside those of an architecture's `small`.
UNSET = {
  "both": (
    *("model.image_size", "model.patch_size", "batch_size", "epochs"),
    *("evaluate_every_epochs", "optim.learning_rate", "optim.warmup_epochs"),
  ),
  "pretrain": (
    *("objective", "teacher.momentum"),
    *("views.color_jitter_probability", "views.grayscale_probability"),
    *("views.solarize_probability", "views.blur_probability"),
    *("views.global_size", "views.local_size", "views.local_views"),
    *("head.out_dim", "head.hidden_dim", "head.bottleneck_dim"),
  ),
  "finetune": (
    *("augment.autoaugment", "augment.erasing_probability"),
    "mix.probability",
  ),
}
PASSES = 10**6  # of images through a training without a budget
MOST_EPOCHS = 400
MOST_TUNING = 300  # epochs of fine-tuning, as in the paper
MIXED_FROM = 40  # epochs of fine-tuning a small network; fewer lose by it
EVALUATIONS = 20


def mark_unset(config):
  """Sets the keys that follow from the images to None, of their types."""
  config.budget = ""
  config.optim.name = "muon"
  small = models.ARCHITECTURES[config.model.name].small
  sizes = [f"model.{key}" for key in small]
  for key in (*UNSET["both"], *UNSET[config.stage], *sizes):
    part, name = place(config, key)
    kind = type(part[name])
    del part[name]
    part[name] = config_dict.placeholder(kind)


def place(config, key):
  """The parent of a key such as "a.b", and the key's last name."""
  *above, name = key.split(".")
  return functools.reduce(lambda part, x: part[x], above, config), name


def resolve(config, facts, *, small, passes=None):
  """Gives every unset key of a config a value, in place.

  Args:
    config: the run's.
    facts: of `data.facts.look`.
    small: use sizes for a CPU.
    passes: images that there is time for; None follows from the set.

  Returns:
    Rows (key, value, reason), in order.
  """
  rows = []

  def set_default(key, value, why):
    part, name = place(config, key)
    if part[name] is None:
      part[name] = value
      rows.append((key, value, why))
    else:
      rows.append((key, part[name], "set by you"))

  model(set_default, config, facts, small)
  length(set_default, config, facts, small, passes)
  if config.stage == "pretrain":
    pretraining(set_default, config, facts)
  else:
    tuning(set_default, config, small)
  return rows


def model(set_default, config, facts, small):
  """Image, patch and network."""
  architecture = models.ARCHITECTURES[config.model.name]
  set_default(
    "model.image_size",
    image_size(facts.side),
    f"most images have a shorter side of {facts.side}",
  )
  across = architecture.small_patches if small else architecture.patches
  patch = max(1, config.model.image_size // across)
  set_default("model.patch_size", patch, f"{across} x {across} patches")
  sizes = architecture.small if small else architecture.sizes
  why = "small, for a CPU" if small else "the paper's"
  for key in architecture.small:
    set_default(f"model.{key}", sizes[key], why)


def image_size(side):
  """The network's image size for images of a shorter side, in pixels."""
  return next((x for x in (16, 32) if side <= 1.25 * x), 64)


def length(set_default, config, facts, small, passes):
  """Batch, epochs, warm-up."""
  batch = 2 ** round(math.log2(max(1, facts.images / 40)))
  batch = min(max(batch, 32), 64 if config.stage == "pretrain" else 128)
  batch = min(batch, 2 ** int(math.log2(facts.images)))
  set_default("batch_size", batch, f"for {facts.images:,} training images")
  why = "as many as the budget allows"
  if passes is None:
    passes = min(PASSES, MOST_EPOCHS * facts.images)
    why = f"{passes:,} passes of an image"
  epochs = max(1, round(passes / facts.images))
  most = MOST_TUNING
  if small:  # 60 of 2,500 images, which are soon known by heart
    most = min(max(round(60 * (2500 / facts.images) ** 0.5), 60), most)
  if config.stage == "finetune" and epochs > most:
    epochs, why = most, "more epochs overfit"
  set_default("epochs", epochs, why)
  set_default(
    "evaluate_every_epochs",
    max(1, config.epochs // EVALUATIONS),
    f"about {EVALUATIONS} times in all",
  )
  set_default(
    "optim.warmup_epochs", config.epochs // 10, "a tenth of the epochs"
  )


def pretraining(set_default, config, facts):
  """Objective, teacher, head, views."""
  mae = models.ARCHITECTURES[config.model.name].mae
  why = f"MAE is for {models.those_with('mae')}"
  why = "better on few images" if mae else why
  set_default("objective", "mae" if mae else "views", why)
  mae = config.objective == "mae"
  why = "for a batch of 256"
  set_default("optim.learning_rate", 0.012 if mae else 0.006, why)
  steps = config.epochs * max(1, facts.images // config.batch_size)
  momentum = round(min(max(1 - 75 / steps, 0.9), 0.996), 4)
  set_default(
    "teacher.momentum", momentum, f"averages over 1/75 of {steps:,} steps"
  )
  side, patch = config.model.image_size, config.model.patch_size
  set_default("views.global_size", side, "the image's")
  why = "it would change the pixels to predict" if mae else "the paper's"
  set_default("views.color_jitter_probability", 0.0 if mae else 0.8, why)
  set_default("views.grayscale_probability", 0.0 if mae else 0.2, why)
  set_default("views.solarize_probability", 0.0 if mae else 0.2, why)
  blur = (0.0, 0.0, 0.0) if mae else (1.0, 0.1, 0.5)
  set_default("views.blur_probability", blur, why)
  if mae:
    keys.drop_unread(config)
    return
  local = max(patch, side // 2 // patch * patch)
  set_default("views.local_size", local, "half of it, in whole patches")
  set_default("views.local_views", 4, "half of the paper's")
  wide = facts.images >= 20_000
  why = "the paper's" if wide else "small, for few images"
  set_default("head.out_dim", 1024 if wide else 256, why)
  set_default("head.hidden_dim", 512 if wide else 128, why)
  set_default("head.bottleneck_dim", 256 if wide else 64, why)


def tuning(set_default, config, small):
  """Learning rate and augmentation of fine-tuning."""
  rate, why = 0.001, "the paper's, for any batch"
  if small and config.optim.name == "muon":  # only this was measured
    rate, why = 0.008 * config.batch_size / 256, "0.008 for a batch of 256"
  set_default("optim.learning_rate", rate, why)
  why = "light, for a short run" if small else "the paper's"
  set_default("augment.autoaugment", "" if small else "imagenet", why)
  set_default("augment.erasing_probability", 0.0 if small else 0.25, why)
  mixed = not small or config.epochs >= MIXED_FROM
  why = "the paper's" if mixed else why
  set_default("mix.probability", 0.5 if mixed else 0.0, why)
