"""What the recipes of both stages share: presets of data sets and models.

A recipe's argument is `ARCH,DATASET`, such as `vit,cifar10`. It chooses sizes
and statistics; every value can then be changed on the command line, such as
`--config.batch_size=128` or `--config.dataset=npz:/path/file.npz`.
"""

import ml_collections

# Channel means and standard deviations of the training images in [0, 1], as
# the paper's code gives them; those of digits were measured on its training
# images at 16 pixels.
STATISTICS = {
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
  "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
  "digits": ((0.3053,) * 3, (0.3530,) * 3),
}
POLICY = {"cifar10": "cifar", "cifar100": "cifar", "svhn": "svhn", "digits": ""}
# The paper's sizes at 32 pixels (its code's build_model.py).
MODELS = {
  "vit": {"patch_size": 4, "embed_dim": 192, "depth": 9, "num_heads": 12},
  "swin": {
    "patch_size": 2,
    "embed_dim": 96,  # of the first stage; doubled by each other
    "depths": (2, 6, 4),
    "num_heads": (3, 6, 12),
    "window_size": 4,
  },
  "cait": {
    "patch_size": 4,
    "embed_dim": 192,
    "depth": 24,
    "depth_token_only": 2,
    "num_heads": 4,
    "layer_scale_init": 1e-5,
  },
}
# Sizes for digits at 16 pixels, where they differ.
DIGITS = {
  "vit": {"embed_dim": 64, "depth": 3, "num_heads": 4},
  "swin": {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
  "cait": {"embed_dim": 64, "depth": 3, "layer_scale_init": 0.1},
}


def parse(arg):
  """Splits "ARCH,DATASET"; a part left out is vit or cifar10.

  Raises:
    ValueError: an unknown architecture or data set.
  """
  arch, _, dataset = (arg or "").partition(",")
  arch, dataset = arch or "vit", dataset or "cifar10"
  if arch not in MODELS or dataset not in STATISTICS:
    raise ValueError(
      f"the config's argument is {arg!r}: it has to be ARCH,DATASET with ARCH"
      f" of {', '.join(MODELS)} and DATASET of {', '.join(STATISTICS)}"
    )
  return arch, dataset


def model(arch, dataset):
  """The paper's sizes for an architecture and the image size of a set."""
  sizes = ml_collections.ConfigDict({"name": arch, "image_size": 32})
  sizes.update(MODELS[arch])
  sizes.mlp_ratio = 2.0
  sizes.drop_path_rate = 0.1
  sizes.locality = ""  # or spt, lsa, spt+lsa
  if dataset == "digits":
    sizes.image_size = 16
    sizes.update(DIGITS[arch])
  return sizes


def base(arch, dataset):
  """The keys that both stages have."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.model = model(arch, dataset)
  config.dtype = "auto"  # of the model's body: auto, float32, bfloat16

  config.dataset = dataset  # or npz:/path/file.npz
  config.data_dir = ""  # of TFDS; "" is $TFDS_DATA_DIR or its default
  config.train_split = "train"  # or, of a TFDS set, such as train[:10%]
  config.data_fraction = 1.0  # of each class's training images
  config.placement = "auto"  # of the training images: auto, device, host
  config.mean, config.std = STATISTICS[dataset]

  config.max_steps = 0  # stop after so many steps; 0 is the whole run
  config.log_every_steps = 20
  config.checkpoint_every_steps = 500
  config.keep_last = 2  # checkpoints
  config.keep_every_epochs = 50  # and one every so many epochs; 0 is none
  config.evaluate_batch_size = 512
  config.tensorboard = True
  config.mesh = ml_collections.ConfigDict({"fsdp": 1})
  return config
