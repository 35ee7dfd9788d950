"""The one tiny network and data set of the tests: milliseconds a step."""

import json

import numpy as np

from vit_ssl_jax import recipes
from vit_ssl_jax.recipes import schema

SIZES = {
  "vit": {"patch_size": 4, "depth": 2, "num_heads": 2},
  "swin": {
    "patch_size": 2,
    "depths": (2, 1),
    "num_heads": (1, 2),
    "window_size": 2,
  },
  "cait": {
    "patch_size": 4,
    "depth": 2,
    "num_heads": 2,
    "depth_token_only": 1,
    "layer_scale_init": 0.1,
  },
}
IMAGES = {"train": 48, "test": 20}


def write_npz(path):
  """Writes images of 8 x 8 pixels in 2 classes, dark and bright."""
  rng = np.random.default_rng(0)
  arrays = {}
  for part, count in IMAGES.items():
    labels = np.arange(count) % 2
    images = (
      rng.integers(0, 128, (count, 8, 8, 3)) + 120 * labels[:, None, None, None]
    )
    arrays[f"{part}_images"] = images.astype(np.uint8)
    arrays[f"{part}_labels"] = labels
  np.savez(path, **arrays)


def config(stage, arch, dataset):
  """A recipe of 9 steps on a set of 48 images, which the caller may change."""
  config = recipes.get(stage, f"{arch},cifar10")
  config.dataset = dataset
  config.model.update(image_size=8, embed_dim=8, **SIZES[arch])
  config.update(epochs=3, batch_size=16, tensorboard=False)
  config.update(evaluate_every_epochs=1, checkpoint_every_steps=2)
  config.update(evaluate_batch_size=16, log_every_steps=2)
  config.optim.warmup_epochs = 1
  if stage == "pretrain":
    config.teacher.temperature_warmup_epochs = 2
    config.head.update(out_dim=16, hidden_dim=8, bottleneck_dim=8)
    config.views.update(global_size=8, local_size=4, local_views=2)
  else:
    config.augment.update(autoaugment="", crop_padding=1)
  return config


def flags(config, workdir, **changes):
  """The arguments of `python -m main` for a config and a workdir."""
  values = schema.flat(json.loads(config.to_json())) | changes
  recipe = f"configs/{values.pop('stage')}.py:{config.model.name},cifar10"
  arguments = [f"--workdir={workdir}", f"--config={recipe}"]
  for key, value in values.items():
    value = tuple(value) if isinstance(value, list) else value
    arguments.append(f"--config.{key}={value}")
  return arguments
