"""The paper's recipe of stage 2; configs/finetune.py says how to run it."""

import ml_collections

from vit_ssl_jax import models
from vit_ssl_jax.data import registry
from vit_ssl_jax.recipes import common


def get_config(arg=""):
  """The recipe for "ARCH,DATASET"."""
  arch, dataset = common.parse(arg)
  config = common.base(arch, dataset)
  config.stage = "finetune"
  config.init_from = ""  # a workdir, or a file of weights; "" is scratch
  config.epochs = 300
  config.batch_size = 256
  config.evaluate_every_epochs = 3

  config.optim = ml_collections.ConfigDict(
    {
      "name": "adamw",  # or muon, not in the paper
      "learning_rate": 1e-3,
      "min_learning_rate": 1e-6,
      "warmup_epochs": config.get_ref("epochs") // 10,
      "weight_decay": 0.05,
    }
  )
  config.label_smoothing = 0.1
  config.drloc = ml_collections.ConfigDict(
    {
      "enabled": False,
      "weight": models.ARCHITECTURES[arch].drloc_weight or 0.1,
      "pairs": 64,  # of tokens, in each image
    }
  )
  config.mix = ml_collections.ConfigDict(
    {"probability": 0.5, "mixup_alpha": 1.0, "cutmix_alpha": 1.0}
  )
  config.augment = ml_collections.ConfigDict(
    {
      "flip_probability": 0.5,
      "crop_padding": 4,
      "autoaugment": registry.get(dataset).autoaugment,  # "" is none
      "erasing_probability": 0.25,
      "erasing_area": (0.02, 0.4),
      "erasing_aspect": (0.3, 1 / 0.3),
    }
  )
  if dataset == "digits":
    digits(config)
  if registry.get(dataset) is registry.OWN:
    from vit_ssl_jax.recipes import custom

    custom.mark_unset(config)
  return config


def digits(config):
  """The recipe for small sets of small, centred, grey images."""
  config.epochs = 40
  config.batch_size = 64
  config.evaluate_every_epochs = 5
  config.optim.warmup_epochs = config.get_ref("epochs") // 8
  config.augment.flip_probability = 0.0
  config.augment.crop_padding = 1
  config.augment.erasing_probability = 0.0
