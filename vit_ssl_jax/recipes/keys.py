"""Every key of a config: its meaning, its values, and what may change it."""

from vit_ssl_jax import models
from vit_ssl_jax.recipes.key_types import (
  Key,
  area,
  channels,
  choice,
  flag,
  interval,
  is_whole,
  number,
  several,
  text,
  whole,
)

SIDE = 4096  # pixels
KEYS = {
  "stage": choice("the recipe's stage", "pretrain", "finetune"),
  "seed": whole("random seed", 0, 2**32 - 1),
  "init_from": text("workdir or file of initial weights; '' is from scratch"),
  "epochs": whole("passes over the training images", 1),
  "batch_size": whole("images a step, over all devices", 1),
  "budget": text("training time (30m, 2h) or steps; '' follows from the set"),
  "evaluate_every_epochs": whole("evaluation interval in epochs", 1),
  # The model.
  "model.name": choice("architecture", *models.ARCHITECTURES),
  "model.image_size": whole("image height and width in pixels", 1, SIDE),
  "model.patch_size": whole("patch height and width in pixels", 1, SIDE),
  "model.embed_dim": whole("embedding width; Swin: first stage", 1, 16384),
  "model.depth": whole("blocks; CaiT: self-attention blocks", 1, 256),
  "model.depths": several(
    "blocks of each of Swin's stages",
    "whole numbers in [1, 256], one for each stage",
    lambda x: bool(x) and all(is_whole(n) and 1 <= n <= 256 for n in x),
  ),
  "model.depth_token_only": whole("CaiT's class-attention blocks", 1, 256),
  "model.num_heads": Key(
    "attention heads; Swin: of each stage",
    "a whole number in [1, 1024], or one for each stage",
    lambda x: all(
      is_whole(n) and 1 <= n <= 1024
      for n in (x if isinstance(x, tuple | list) else [x])
    ),
  ),
  "model.window_size": whole("Swin's window height and width", 1, 1024),
  "model.layer_scale_init": number("CaiT's initial LayerScale; 0: none", 0, 10),
  "model.mlp_ratio": number("MLP width over embedding width", 0, 64, "(]"),
  "model.drop_path_rate": number("stochastic depth rate", 0, 1, "[)"),
  "model.locality": choice(
    "shifted patch tokenisation, locality self-attention",
    *("", "spt", "lsa", "spt+lsa"),
  ),
  "dtype": choice("the model body's type", "auto", "float32", "bfloat16"),
  "accumulate_steps": whole(
    "gradient accumulation: micro-batches a step", 1, resumable=True
  ),
  "kernels": choice(
    "kernels where they are checked and faster, or XLA alone",
    *("auto", "xla"),
    resumable=True,
  ),
  "remat": Key(
    "activation checkpointing of each block; None: on accelerators",
    "True, False or None",
    lambda x: x is None or isinstance(x, bool),
    resumable=True,
  ),
  # The data.
  "dataset": text("a name, folder:/path or npz:/path/file.npz", data=True),
  "data_dir": text(
    "TFDS folder; '' is $TFDS_DATA_DIR or TFDS's default",
    resumable=True,
    data=True,
  ),
  "train_split": text("TFDS training split; '' is the paper's", data=True),
  "val_split": text("TFDS validation split; '' is none", data=True),
  "test_split": text("TFDS test split; '' is the paper's", data=True),
  "split_seed": whole(
    "random seed of the three fractions below", 0, 2**32 - 1, data=True
  ),
  "val_fraction": number(
    "share of each class's training images held out", 0, 1, "[)", data=True
  ),
  "test_fraction": number(
    "share held out of a folder without test images", 0, 1, "()", data=True
  ),
  "data_fraction": number(
    "share of each class's training images used", 0, 1, "(]", data=True
  ),
  "data_fraction_keeps": choice(
    "what a run on a data_fraction keeps of the whole run's", "epochs", "steps"
  ),
  "resize": choice(
    "how images become square: crop the middle, or squash",
    *("crop", "squash"),
    data=True,
  ),
  "skip_broken_images": flag("skip a folder's unreadable images", data=True),
  "mean": channels("channel means; () is the set's", "[0"),
  "std": channels("channel standard deviations; () is the set's", "(0"),
  "placement": choice(
    "where training images are kept",
    *("auto", "device", "host", "disk"),
    resumable=True,
  ),
  "memory_share": number(
    "largest share of a memory for images if placement='auto'",
    *(0, 1, "[)"),
    resumable=True,
  ),
  # The run.
  "steps_per_dispatch": whole(
    "steps per call of the program; 0 is automatic", 0, 10**6, resumable=True
  ),
  "max_steps": whole("last step of this run; 0 is all", 0, resumable=True),
  "log_every_steps": whole("logging interval in steps", 1, resumable=True),
  "checkpoint_every_steps": whole(
    "checkpoint interval in steps", 1, resumable=True
  ),
  "keep_last": whole("newest checkpoints that are kept", 1, resumable=True),
  "keep_every_epochs": whole(
    "interval in epochs of checkpoints kept for good; 0 is none",
    0,
    resumable=True,
  ),
  "evaluate_batch_size": whole("images an evaluation step", 1, resumable=True),
  "tensorboard": flag("write TensorBoard events", resumable=True),
  "on_collapse": choice(
    "reaction to a collapsed teacher",
    *("warn", "stop"),
    resumable=True,
    views=True,
  ),
  "on_nonfinite": choice(
    "reaction to a loss or gradient that is not finite", "stop", "skip"
  ),
  "mesh.fsdp": whole("devices that shard the parameters", 1, resumable=True),
  # The optimizer.
  "optim.name": choice("muon: for matrices of blocks", "adamw", "muon"),
  "optim.learning_rate": number(
    "peak learning rate; pretraining: for a batch of 256", 0, 100
  ),
  "optim.min_learning_rate": number("final learning rate", 0, 100),
  "optim.warmup_epochs": whole("learning rate warm-up in epochs", 0),
  "optim.weight_decay": number("weight decay; pretraining: initial", 0, 100),
  "optim.weight_decay_end": number("final weight decay", 0, 100),
  "optim.clip_per_tensor": number(
    "largest L2 norm of a tensor's gradient; 0 is any", 0, 1e6
  ),
  "optim.freeze_last_layer_epochs": whole(
    "epochs in which the head's last layer is frozen", 0, views=True
  ),
  # Pretraining.
  "objective": choice(
    "view prediction, or a masked autoencoder (MAE, ViT only)",
    *("views", "mae"),
  ),
  "student_temperature": number("student temperature", 1e-3, 10, views=True),
  "teacher.momentum": number(
    "initial momentum of the EMA teacher; a cosine to 1", 0, 1, "[)"
  ),
  "teacher.warmup_temperature": number(
    "initial teacher temperature", 1e-3, 10, views=True
  ),
  "teacher.temperature": number(
    "teacher temperature after warm-up", 1e-3, 10, views=True
  ),
  "teacher.temperature_warmup_epochs": whole(
    "warm-up epochs of the teacher temperature", 0, views=True
  ),
  "teacher.centering": choice(
    "centring of teacher outputs, against collapse",
    *("mean", "sinkhorn"),
    views=True,
  ),
  "teacher.center_momentum": number(
    "momentum of the centre if centering='mean'", 0, 1, "[)", views=True
  ),
  "teacher.drop_path": flag("stochastic depth in the teacher too", views=True),
  "head.out_dim": whole("outputs of the head, K", 2, 2**20, views=True),
  "head.hidden_dim": whole("hidden width of the head", 1, 2**16, views=True),
  "head.bottleneck_dim": whole(
    "bottleneck width of the head", 1, 2**16, views=True
  ),
  "views.global_size": whole("global view's side in pixels", 1, SIDE),
  "views.local_size": whole("local view's side in pixels", 1, SIDE, views=True),
  "views.local_views": whole("number of local views", 0, 100, views=True),
  "views.global_scale": area("share of the image in a global view"),
  "views.local_scale": area("share of the image in a local view", views=True),
  "views.flip_probability": number("probability of flipping a view", 0, 1),
  "views.color_jitter": several(
    "jitter of brightness, contrast, saturation, hue",
    "four numbers in [0, 1], the last one at most 0.5",
    lambda x: len(x) == 4 and all(0 <= n <= 1 for n in x) and x[3] <= 0.5,
  ),
  "views.color_jitter_probability": number("probability of the jitter", 0, 1),
  "views.grayscale_probability": number("probability of a grey view", 0, 1),
  "views.blur_probability": several(
    "probability of blurring global view 1, global view 2, local views",
    "three numbers in [0, 1]",
    lambda x: len(x) == 3 and all(0 <= n <= 1 for n in x),
  ),
  "views.solarize_probability": number(
    "probability of solarising global view 2", 0, 1
  ),
  # Fine-tuning.
  "label_smoothing": number("label smoothing", 0, 1, "[)"),
  "drloc.enabled": flag("dense relative localisation (ViT, Swin)"),
  "drloc.weight": number("weight of the drloc loss", 0, 1000),
  "drloc.pairs": whole("token pairs an image of the drloc loss", 1, 10**6),
  "mix.probability": number("share of batches that are mixed", 0, 1),
  "mix.mixup_alpha": number("alpha of mixup", 0, 1000, "(]"),
  "mix.cutmix_alpha": number("alpha of CutMix", 0, 1000, "(]"),
  "augment.flip_probability": number("probability of flipping an image", 0, 1),
  "augment.crop_padding": whole("padding of random crops in pixels", 0, 1024),
  "augment.autoaugment": choice(
    "AutoAugment policy; '' is none", "", "cifar", "svhn", "imagenet"
  ),
  "augment.erasing_probability": number("probability of erasing a box", 0, 1),
  "augment.erasing_area": area("share of the image in the erased box"),
  "augment.erasing_aspect": interval(
    "width over height of the erased box",
    "numbers in [0.01, 100]",
    lambda x: 0.01 <= x <= 100,
  ),
}
RESUMABLE = tuple(name for name, key in KEYS.items() if key.resumable)


def drop_unread(config):
  """Deletes what a masked autoencoder does not read from a config or dict."""
  if config.get("objective") != "mae":
    return
  for name in (name for name, key in KEYS.items() if key.views):
    group, _, last = name.rpartition(".")
    part = config.get(group, {}) if group else config
    if last in part:
      del part[last]
    if group in config and not part:
      del config[group]
