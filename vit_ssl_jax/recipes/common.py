"""Keys that the recipes of both stages share; `keys` has their meanings."""

import ml_collections
from ml_collections import config_dict

from vit_ssl_jax import models
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError


def parse(arg):
  """Splits "ARCH,DATASET", by default "vit,cifar10"."""
  arch, _, dataset = (arg or "").partition(",")
  arch, dataset = arch or "vit", dataset or "cifar10"
  if arch not in models.ARCHITECTURES:
    raise UserError(
      f"the recipe's argument {arg!r} must be ARCH,DATASET with ARCH one of"
      f" {', '.join(models.ARCHITECTURES)}"
    )
  registry.get(dataset)
  return arch, dataset


def model(arch, dataset):
  """The paper's sizes for an architecture and the image size of a set."""
  architecture = models.ARCHITECTURES[arch]
  image_size = registry.get(dataset).image_size
  sizes = ml_collections.ConfigDict({"name": arch, "image_size": image_size})
  sizes.patch_size = architecture.patch_sizes[image_size]
  sizes.update(architecture.sizes)
  sizes.mlp_ratio = 2.0
  sizes.drop_path_rate = 0.1
  sizes.locality = ""  # or spt, lsa, spt+lsa
  if dataset == "digits":
    sizes.update(architecture.digits)
  return sizes


def base(arch, dataset):
  """The keys that both stages have."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = model(arch, dataset)
  config.dtype = "auto"
  config.accumulate_steps = 1
  config.kernels = "auto"
  config.remat = False
  if models.ARCHITECTURES[arch].remat:  # True on accelerators
    config.remat = config_dict.placeholder(bool)

  config.dataset = dataset
  config.data_dir = ""
  config.train_split = config.val_split = config.test_split = ""
  config.split_seed = 0  # of the three shares below, the same for any seed
  config.val_fraction = 0.0
  config.test_fraction = 0.2
  config.data_fraction = 1.0
  # An epoch is one pass over that share, or as many steps as of the whole set.
  config.data_fraction_keeps = "epochs"
  config.resize = registry.get(dataset).resize
  config.skip_broken_images = False
  config.mean = config.std = ()
  config.placement = "auto"
  config.memory_share = 0.3

  config.steps_per_dispatch = 0  # 10 on an accelerator that holds the set
  config.max_steps = 0
  config.log_every_steps = 20
  config.checkpoint_every_steps = 500
  config.keep_last = 2
  config.keep_every_epochs = 50
  config.evaluate_batch_size = 512
  config.tensorboard = True
  config.on_nonfinite = "stop"
  config.mesh = ml_collections.ConfigDict({"fsdp": 1})
  return config
