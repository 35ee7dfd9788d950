"""The paper's recipe of stage 1; configs/pretrain.py says how to run it."""

import ml_collections

from vit_ssl_jax.data import registry
from vit_ssl_jax.recipes import common


def get_config(arg=""):
  """The recipe for "ARCH,DATASET"."""
  arch, dataset = common.parse(arg)
  config = common.base(arch, dataset)
  config.stage = "pretrain"
  config.objective = "views"  # or mae, of ViT alone, not in the paper
  config.epochs = 200
  epochs = config.get_ref("epochs")  # warm-ups follow what is set later
  config.batch_size = 512
  config.evaluate_every_epochs = 10  # nearest neighbours on the teacher

  config.optim = ml_collections.ConfigDict(
    {
      "name": "adamw",  # or muon, not in the paper
      "learning_rate": 1e-4,  # for a batch of 256; scaled with the batch
      "min_learning_rate": 1e-6,
      "warmup_epochs": epochs * 3 // 20,
      "weight_decay": 0.04,
      "weight_decay_end": 0.4,
      "clip_per_tensor": 3.0,  # 0 is none
      "freeze_last_layer_epochs": 1,
    }
  )
  config.student_temperature = 0.1
  config.teacher = ml_collections.ConfigDict(
    {
      "momentum": 0.996,  # at the start; a cosine to 1
      "warmup_temperature": 0.04,
      "temperature": 0.07,
      "temperature_warmup_epochs": epochs // 20,
      "centering": "mean",  # or sinkhorn
      "center_momentum": 0.9,
      "drop_path": True,  # as in the paper's code
    }
  )
  config.head = ml_collections.ConfigDict(
    {"out_dim": 1024, "hidden_dim": 512, "bottleneck_dim": 256}
  )
  config.views = views(config.model)
  config.on_collapse = "warn"  # or stop
  if dataset == "digits":
    digits(config, arch)
  if registry.get(dataset) is registry.OWN:
    small_set(config)
    from vit_ssl_jax.recipes import custom

    custom.mark_unset(config)
  return config


def views(model):
  """The crops and their augmentation, for a model's image size."""
  small = model.image_size <= 32
  side = model.get_ref("image_size")  # follows what is set later
  return ml_collections.ConfigDict(
    {
      "global_size": side * 1,  # a value of its own
      "local_size": side // 2,
      "local_views": 8,
      # Shares of the image's area; those of larger images are the paper's for
      # Tiny-ImageNet, which names none for 224 pixels.
      "global_scale": (0.7, 1.0) if small else (0.5, 1.0),
      "local_scale": (0.2, 0.5) if small else (0.2, 0.4),
      "flip_probability": 0.5,
      "color_jitter": (0.4, 0.4, 0.2, 0.1),  # brightness, contrast, sat., hue
      "color_jitter_probability": 0.8,
      "grayscale_probability": 0.2,
      "blur_probability": (1.0, 0.1, 0.5),  # global 1, global 2, local
      "solarize_probability": 0.2,  # of global 2
    }
  )


def digits(config, arch):
  """The recipe for 1,437 small, centred, grey images."""
  small_set(config)
  config.epochs = 75 if arch == "swin" else 150  # it takes longer a step
  config.batch_size = 64
  epochs = config.get_ref("epochs")
  config.optim.warmup_epochs = epochs // (15 if arch == "swin" else 30)
  config.teacher.momentum = 0.98
  config.head = ml_collections.ConfigDict(
    {"out_dim": 256, "hidden_dim": 128, "bottleneck_dim": 64}
  )
  config.views.flip_probability = 0.0
  config.views.color_jitter = (0.0, 0.4, 0.0, 0.0)
  config.views.grayscale_probability = 0.0
  config.views.solarize_probability = 0.0
  config.views.blur_probability = (0.5, 0.1, 0.5)


def small_set(config):
  """Keeps the teacher's signal on few images; docs/training.md, Small sets."""
  config.optim.learning_rate = 6e-3  # 1.5e-3 at a batch of 64
  config.teacher.warmup_temperature = 0.02
  config.teacher.temperature = 0.02
  config.teacher.temperature_warmup_epochs = 0
  config.teacher.centering = "sinkhorn"
  config.teacher.drop_path = False
  config.views.local_views = 4
  config.views.global_scale = (0.6, 1.0)
  config.views.local_scale = (0.4, 0.8)
