"""Every key of a config: what it means, and what it may be."""

import dataclasses
import math
import numbers
from collections.abc import Callable

from vit_ssl_jax import models

MOST = 2**31 - 1  # that a step's number, or a size, can be
LARGEST_SIDE = 4096  # pixels


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of a config.

  Attributes:
    meaning: what it is.
    possible: what it may be, in words.
    fits: whether a value is that.
  """

  meaning: str
  possible: str
  fits: Callable[[object], bool]


def whole(meaning, low, high=MOST):
  """A whole number."""
  possible = f"a whole number of at least {low}"
  if high != MOST:
    possible = f"a whole number in [{low}, {high}]"
  return Key(meaning, possible, lambda x: is_whole(x) and low <= x <= high)


def number(meaning, low, high, open_low=False, open_high=False):
  """A finite number in an interval, which may be without its ends."""
  brackets = "[("[open_low], "])"[open_high]
  return Key(
    meaning,
    f"a number in {brackets[0]}{low:g}, {high:g}{brackets[1]}",
    lambda x: (
      is_number(x)
      and low <= x <= high
      and not (open_low and x == low)
      and not (open_high and x == high)
    ),
  )


def share(meaning):
  """A probability or another share."""
  return number(meaning, 0, 1)


def flag(meaning):
  return Key(meaning, "True or False", lambda x: isinstance(x, bool))


def text(meaning):
  """Any text without a line break, such as a path."""

  def fits(x):
    return isinstance(x, str) and x.isprintable()

  return Key(meaning, "text", fits)


def choice(meaning, *choices):
  return Key(meaning, " or ".join(map(repr, choices)), lambda x: x in choices)


def several(meaning, possible, fits):
  """A tuple of finite numbers, for which further holds what `fits` says."""
  return Key(
    meaning,
    possible,
    lambda x: (
      isinstance(x, tuple | list) and all(map(is_number, x)) and fits(x)
    ),
  )


def interval(meaning, what, fits):
  """Two numbers, low and high, both of which `fits`."""
  return several(
    meaning,
    f"two {what}, low and high",
    lambda x: len(x) == 2 and x[0] <= x[1] and all(map(fits, x)),
  )


def area(meaning):
  """Two shares of an image's area."""
  what = "shares of the area in (0, 1]"
  return interval(meaning, what, lambda x: 0 < x <= 1)


def sizes(meaning, high):
  """A whole number for each stage of Swin."""
  return several(
    meaning,
    f"whole numbers in [1, {high}], one for each stage",
    lambda x: bool(x) and all(is_whole(n) and 1 <= n <= high for n in x),
  )


def channels(meaning, low_open):
  """A number for each of three channels, or ()."""
  low = "(0" if low_open else "[0"
  return several(
    meaning,
    f"three numbers in {low}, 1], or ()",
    lambda x: (
      len(x) in (0, 3)
      and all(0 <= n <= 1 and not (low_open and n == 0) for n in x)
    ),
  )


def is_whole(x):
  return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def is_number(x):
  real = isinstance(x, numbers.Real) and not isinstance(x, bool)
  return real and math.isfinite(x)


KEYS = {
  "stage": choice("the recipe's stage", "pretrain", "finetune"),
  "seed": whole("of all that is random in training", 0, 2**32 - 1),
  "init_from": text("a workdir, or a file of weights; '' is scratch"),
  "epochs": whole("passes over the training images", 1),
  "batch_size": whole("images a step, of all devices together", 1),
  "budget": text("of time (30m, 2h) or of steps; '' is what suits the set"),
  "evaluate_every_epochs": whole("how often the test images are used", 1),
  # The model.
  "model.name": choice("architecture", *models.ARCHITECTURES),
  "model.image_size": whole("pixels a side of an image", 1, LARGEST_SIDE),
  "model.patch_size": whole("pixels a side of a patch", 1, LARGEST_SIDE),
  "model.embed_dim": whole("width D; of Swin's first stage", 1, 16384),
  "model.depth": whole("blocks; of CaiT those among patches", 1, 256),
  "model.depths": sizes("blocks of each stage of Swin", 256),
  "model.depth_token_only": whole("class-attention blocks of CaiT", 1, 256),
  "model.num_heads": Key(
    "attention heads; of Swin by stage",
    "a whole number in [1, 1024], or one for each stage",
    lambda x: (
      all(is_whole(n) and 1 <= n <= 1024 for n in x)
      if isinstance(x, tuple | list)
      else is_whole(x) and 1 <= x <= 1024
    ),
  ),
  "model.window_size": whole("patches a side of a window of Swin", 1, 1024),
  "model.layer_scale_init": number("of CaiT's LayerScale; 0 is none", 0, 10),
  "model.mlp_ratio": number("hidden width of an MLP over D", 0, 64, True),
  "model.drop_path_rate": number("stochastic depth", 0, 1, open_high=True),
  "model.locality": choice(
    "shifted patch tokenisation, locality self-attention",
    *("", "spt", "lsa", "spt+lsa"),
  ),
  "dtype": choice("of the model's body", "auto", "float32", "bfloat16"),
  "accumulate_steps": whole("micro-batches a batch", 1),
  "kernels": choice(
    "the device's own kernels where they are faster, or XLA's forms alone",
    *("auto", "xla"),
  ),
  "remat": flag("activation checkpointing, block by block"),
  # The data.
  "dataset": text("a set's name, folder:/path or npz:/path/file.npz"),
  "data_dir": text("of TFDS; '' is $TFDS_DATA_DIR or its default"),
  "train_split": text("of a TFDS set; '' is what the paper trains on"),
  "val_split": text("of a TFDS set; '' is none"),
  "test_split": text("of a TFDS set; '' is what the paper tests on"),
  "split_seed": whole("of the three shares below", 0, 2**32 - 1),
  "val_fraction": number(
    "of each class's training images, held out", 0, 1, open_high=True
  ),
  "test_fraction": number(
    "held out of a folder without train and test", 0, 1, True, True
  ),
  "data_fraction": number("of each class's training images", 0, 1, True),
  "data_fraction_keeps": choice("of a whole run's", "epochs", "steps"),
  "resize": choice("to the model's size", "crop", "squash"),
  "skip_broken_images": flag("of a folder"),
  "mean": channels("of the channels; () is the set's", False),
  "std": channels("of the channels; () is the set's", True),
  "placement": choice(
    "of the training images", "auto", "device", "host", "disk"
  ),
  "memory_share": number(
    "of a memory that they may take, if auto", 0, 1, open_high=True
  ),
  # The run.
  "steps_per_dispatch": whole("0 is chosen by the device", 0, 10**6),
  "max_steps": whole("stops after so many; 0 is the whole run", 0),
  "log_every_steps": whole("how often lines are written", 1),
  "checkpoint_every_steps": whole("how often the state is saved", 1),
  "keep_last": whole("checkpoints", 1),
  "keep_every_epochs": whole("a checkpoint that is kept; 0 is none", 0),
  "evaluate_batch_size": whole("images", 1),
  "tensorboard": flag("whether events are written"),
  "on_collapse": choice(
    "a pretraining in which nothing is being learnt", "warn", "stop"
  ),
  "on_nonfinite": choice(
    "a step whose loss or gradients are not finite", "stop", "skip"
  ),
  "mesh.fsdp": whole("devices that a state is sharded over", 1),
  # The optimizer.
  "optim.name": choice("muon is for the blocks' matrices", "adamw", "muon"),
  "optim.learning_rate": number(
    "the peak; in pretraining of a batch of 256", 0, 100
  ),
  "optim.min_learning_rate": number("at the end", 0, 100),
  "optim.warmup_epochs": whole("of the learning rate", 0),
  "optim.weight_decay": number("of AdamW; the start's", 0, 100),
  "optim.weight_decay_end": number("the end's", 0, 100),
  "optim.clip_per_tensor": number("largest L2 norm; 0 is none", 0, 1e6),
  "optim.freeze_last_layer_epochs": whole("of the head", 0),
  # Pretraining.
  "objective": choice(
    "view prediction, or a masked autoencoder (MAE, ViT only)",
    *("views", "mae"),
  ),
  "student_temperature": number("of the softmax", 1e-3, 10),
  "teacher.momentum": number("at the start; a cosine to 1", 0, 1, False, True),
  "teacher.warmup_temperature": number("at the start", 1e-3, 10),
  "teacher.temperature": number("of the softmax", 1e-3, 10),
  "teacher.temperature_warmup_epochs": whole("of it", 0),
  "teacher.centering": choice("against collapse", "mean", "sinkhorn"),
  "teacher.center_momentum": number("of the mean", 0, 1, False, True),
  "teacher.drop_path": flag("as in the paper's code"),
  "head.out_dim": whole("outputs K", 2, 2**20),
  "head.hidden_dim": whole("width", 1, 2**16),
  "head.bottleneck_dim": whole("width", 1, 2**16),
  "views.global_size": whole("pixels a side", 1, LARGEST_SIDE),
  "views.local_size": whole("pixels a side", 1, LARGEST_SIDE),
  "views.local_views": whole("how many; global ones are two", 0, 100),
  "views.global_scale": area("of the image"),
  "views.local_scale": area("of the image"),
  "views.flip_probability": share("of a view"),
  "views.color_jitter": several(
    "of brightness, contrast, saturation, hue",
    "four numbers in [0, 1], the last one at most 0.5",
    lambda x: len(x) == 4 and all(0 <= n <= 1 for n in x) and x[3] <= 0.5,
  ),
  "views.color_jitter_probability": share("of a view"),
  "views.grayscale_probability": share("of a view"),
  "views.blur_probability": several(
    "of the first and the second global view, of local ones",
    "three numbers in [0, 1]",
    lambda x: len(x) == 3 and all(0 <= n <= 1 for n in x),
  ),
  "views.solarize_probability": share("of the second global view"),
  # Fine-tuning.
  "label_smoothing": number("of the targets", 0, 1, open_high=True),
  "drloc.enabled": flag("dense relative localisation, of vit and swin"),
  "drloc.weight": number("of its loss", 0, 1000),
  "drloc.pairs": whole("of tokens, in each image", 1, 10**6),
  "mix.probability": share("of a batch that is mixed"),
  "mix.mixup_alpha": number("of Mixup", 0, 1000, True),
  "mix.cutmix_alpha": number("of CutMix", 0, 1000, True),
  "augment.flip_probability": share("of an image"),
  "augment.crop_padding": whole("pixels", 0, 1024),
  "augment.autoaugment": choice(
    "the policy; '' is none", "", "cifar", "svhn", "imagenet"
  ),
  "augment.erasing_probability": share("of an image"),
  "augment.erasing_area": area("of a box that is erased"),
  "augment.erasing_aspect": interval(
    "of that box, width over height",
    "numbers in [0.01, 100]",
    lambda x: 0.01 <= x <= 100,
  ),
}
# The keys that objective="views" alone reads.
VIEWS_ALONE = (
  "student_temperature",
  "teacher.warmup_temperature",
  "teacher.temperature",
  "teacher.temperature_warmup_epochs",
  "teacher.centering",
  "teacher.center_momentum",
  "teacher.drop_path",
  "head",
  "views.local_size",
  "views.local_views",
  "views.local_scale",
  "optim.freeze_last_layer_epochs",
  "on_collapse",
)


def drop_unread(config):
  """Deletes what a masked autoencoder does not read from a config or dict."""
  if config.get("objective") != "mae":
    return
  for key in VIEWS_ALONE:
    above, _, name = key.rpartition(".")
    part = config[above] if above else config
    if name in part:
      del part[name]
