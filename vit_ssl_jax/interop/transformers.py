"""The names of transformers' checkpoints (Wolf et al., 2020), and its config.

These are the names in a checkpoint's file, which versions 4 and 5 both read and
write; inside a model of version 5 some differ. Queries, keys and values have a
linear layer each.
"""

import re

import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import reference, renaming

# Patterns of the reference's names, and their replacements.
RENAMED = [
  (r"^head\.", "classifier."),
  (r"^norm\.", "layernorm."),
  (r"^cls_token", "embeddings.cls_token"),
  (r"^pos_embed", "embeddings.position_embeddings"),
  (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
  (r"^patch_embed\.norm\.", "embeddings.norm."),
  (r"^blocks\.", "encoder.layer."),
  (r"^layers\.", "encoder.layers."),
  (r"\.norm1\.", ".layernorm_before."),
  (r"\.norm2\.", ".layernorm_after."),
  (r"\.attn\.proj\.", ".attention.output.dense."),
  (r"\.mlp\.fc1\.", ".intermediate.dense."),
  (r"\.mlp\.fc2\.", ".output.dense."),
]
# transformers normalises Swin's embeddings with an epsilon of 1e-5 that no
# config changes. A factor before a normalisation only rescales its epsilon:
# this one makes it 0.6e-6, near our 1e-6, and loses no bit.
SCALED = "embeddings.patch_embeddings.projection"
SCALE = 4
# Values of a config that no size of ours changes.
FIXED = {
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-6,
  "num_channels": 3,
  "qkv_bias": True,
}
# Our sizes -> their names in a config.
SIZES = {
  "vit": {
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
  },
  "swin": {
    name: name
    for name in (
      "depths",
      "drop_path_rate",
      "embed_dim",
      "mlp_ratio",
      "num_heads",
      "window_size",
    )
  },
}
for sizes in SIZES.values():
  sizes |= {"image_size": "image_size", "patch_size": "patch_size"}


def transformers_config(model, labels=None):
  """Returns the content of config.json for a model's counterpart.

  It is ViTForImageClassification or SwinForImageClassification; without classes
  ViTModel, to be made with add_pooling_layer=False, whose first token's
  last_hidden_state is the features, or SwinModel, whose pooler_output is.

  Swin's merged patches are normalised with an epsilon of 1e-5 that no config
  changes, and ours with 1e-6: logits of the paper's size differed by up to 1e-5
  where the largest was 5.6.

  Args:
    model: a model of `models.build`, for images of its size.
    labels: names of the classes, in order; None calls them LABEL_0 and so on.
  """
  check(model)
  arch = models.name_of(model)
  config = FIXED | {"model_type": arch}
  for size, key in SIZES[arch].items():
    value = getattr(model, size)
    config[key] = list(value) if isinstance(value, tuple) else value
  if arch == "swin":
    config |= {"use_absolute_embeddings": False}
  else:
    config |= {
      "attention_probs_dropout_prob": 0.0,
      "hidden_dropout_prob": 0.0,
      "intermediate_size": int(model.embed_dim * model.mlp_ratio),
    }
  suffix = "ForImageClassification" if model.num_classes else "Model"
  config["architectures"] = [models.ARCHITECTURES[arch].transformers + suffix]
  return config | names_of_classes(labels, model.num_classes)


def names_of_classes(labels, classes):
  """Returns a config's entries that name the classes."""
  if labels is None:
    labels = [f"LABEL_{i}" for i in range(classes)]
  if len(labels) != classes:
    raise UserError(f"there are {len(labels)} labels for {classes} classes")
  if not classes:
    return {}
  labels = [str(label) for label in labels]
  return {
    "id2label": {str(i): label for i, label in enumerate(labels)},
    "label2id": {label: i for i, label in enumerate(labels)},
  }


def about(config):
  """Converts config.json's content to metadata of `interop.metadata.KEYS`."""
  kind = config.get("model_type")
  if kind not in SIZES:
    raise UserError(
      f"config.json has model_type {kind!r}: possible are"
      f" {models.those_with('transformers')}"
    )
  for key, value in FIXED.items():
    if config.get(key, value) != value:
      raise UserError(
        f"config.json has {key}={config[key]!r}: it must be {value!r}"
      )
  sizes = {size: config[key] for size, key in SIZES[kind].items()}
  if "intermediate_size" in config:
    sizes["mlp_ratio"] = config["intermediate_size"] / config["hidden_size"]
  labels = []
  if config["architectures"][0].endswith("ForImageClassification"):
    names = config["id2label"]
    labels = [names[str(i)] for i in range(len(names))]
  sizes |= {"name": kind, "num_classes": len(labels)}
  if labels == [f"LABEL_{i}" for i in range(len(labels))]:
    labels = []
  return {"architecture": kind, "model": sizes, "classes": labels}


def image_processor(model, mean, std, resize):
  """Returns the content of preprocessor_config.json."""
  S = model.image_size
  config = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(mean),
    "image_std": list(std),
    "resample": 3,  # bicubic
    "rescale_factor": 1 / 255,
  }
  if resize == "squash":
    size = {"height": S, "width": S}
    return config | {"image_processor_type": "ViTImageProcessor", "size": size}
  # We crop first, CLIP resizes first: images that are not square differ a bit.
  return config | {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": S, "width": S},
    "do_center_crop": True,
    "size": {"shortest_edge": S},
  }


def statistics(config):
  """Returns mean and std from preprocessor_config.json's content."""
  return {"mean": config["image_mean"], "std": config["image_std"]}


def check(model):
  """Checks that transformers can express a model."""
  renaming.check(model, "transformers")
  for stage, _, side in renaming.stages(model) if is_swin(model) else ():
    if side < model.window_size:
      raise UserError(
        "transformers' Swin has tables of relative positions of one size:"
        f" model.window_size={model.window_size} must not exceed the {side}"
        f" patches a side of stage {stage}"
      )


def is_swin(model):
  return isinstance(model, models.SwinTransformer)


def names(name, model):
  """Returns transformers' names of the reference's array."""
  is_head = name.startswith("head.")
  for pattern, replacement in RENAMED:
    name = re.sub(pattern, replacement, name)
  inner = "self" if is_swin(model) else "attention"
  name = name.replace(".attn.", f".attention.{inner}.")
  if model.num_classes and not is_head:
    name = f"{models.name_of(model)}.{name}"
  parts = ("query", "key", "value") if ".qkv." in name else ("qkv",)
  return [name.replace("qkv", part) for part in parts]


def to_torch(params, model):
  """Converts parameters as the package's `to_torch` does."""
  check(model)
  state = scaled(renaming.to_torch(params, model, names), model, SCALE)
  return state | reference.position_indices(state)


def from_torch(state_dict, model):
  """Converts a state dict as the package's `from_torch` does.

  Version 5 does not write `relative_position_index`; it may be missing.
  """
  check(model)
  state = reference.as_floats(state_dict)
  state = reference.position_indices(state) | state
  params = renaming.from_torch(
    scaled(state, model, 1 / SCALE), model, names, to_torch
  )
  reference.check_positions(state)
  return params


def scaled(state, model, factor):
  """Multiplies Swin's projection of patches by a factor."""
  if not is_swin(model):
    return state
  return {
    name: x * np.float32(factor) if SCALED in name else x
    for name, x in state.items()
  }
