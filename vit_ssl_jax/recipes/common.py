"""What the recipes of both stages share: models' sizes and common keys.

A recipe's argument is `ARCH,DATASET`, such as `vit,cifar10`. It chooses sizes,
crops and the AutoAugment policy; every value can then be changed on the command
line, such as `--config.batch_size=128`. DATASET is a name in
`vit_ssl_jax.data.registry`, or `folder:/path` or `npz:/path/file.npz` for
images of one's own.
"""

import ml_collections

from vit_ssl_jax import models
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError


def parse(arg):
  """Splits "ARCH,DATASET"; a part left out is vit or cifar10.

  Raises:
    UserError: an unknown architecture or data set.
  """
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
  config.dtype = "auto"  # of the model's body: auto, float32, bfloat16
  # Both take less memory and more time, and change rounding alone.
  config.accumulate_steps = 1  # gradient accumulation: micro-batches a batch
  config.kernels = "auto"  # the device's, where they are faster; or xla
  config.remat = False  # activation checkpointing, block by block

  config.dataset = dataset  # or folder:/path, npz:/path/file.npz
  config.data_dir = ""  # of TFDS; "" is $TFDS_DATA_DIR or its default
  # Parts of a TFDS set, such as train[:10%] or train+validation. "" is what
  # the paper trains and tests on, and no validation images.
  config.train_split = config.val_split = config.test_split = ""
  config.split_seed = 0  # of the three shares below, the same for any seed
  config.val_fraction = 0.0  # of each class's training images, held out
  config.test_fraction = 0.2  # held out of a folder without train and test
  config.data_fraction = 1.0  # of each class's training images
  # An epoch is one pass over that share, or as many steps as of the whole set.
  config.data_fraction_keeps = "epochs"  # or steps
  # crop resizes the shorter side and takes the middle, squash both sides.
  config.resize = registry.get(dataset).resize
  config.skip_broken_images = False  # of a folder
  # Of the images' channels in [0, 1]; () are the set's published ones, or are
  # computed from the training images.
  config.mean = config.std = ()
  config.placement = "auto"  # of the training images: auto, device, host, disk
  config.memory_share = 0.3  # of either memory that they may take, if auto

  config.steps_per_dispatch = 0  # 0 is 10 on an accelerator that holds the set
  config.max_steps = 0  # stop after so many steps; 0 is the whole run
  config.log_every_steps = 20
  config.checkpoint_every_steps = 500
  config.keep_last = 2  # checkpoints
  config.keep_every_epochs = 50  # and one every so many epochs; 0 is none
  config.evaluate_batch_size = 512
  config.tensorboard = True
  # A step whose loss or gradients are not finite ends the run, or is left out.
  config.on_nonfinite = "stop"  # or skip
  config.mesh = ml_collections.ConfigDict({"fsdp": 1})
  return config
