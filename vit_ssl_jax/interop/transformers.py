"""The names of transformers' checkpoints (Wolf et al., 2020), and its config.

They are the names in a checkpoint's file, which versions 4 and 5 both read and
write; inside a model of version 5 some are called otherwise. There queries,
keys and values have a linear layer each.
"""

import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import reference, renaming

MODULES = {
  "patch_embed.proj": "embeddings.patch_embeddings.projection",
  "patch_embed.norm": "embeddings.norm",
  "cls_token": "embeddings.cls_token",
  "pos_embed": "embeddings.position_embeddings",
  "norm": "layernorm",
}
# There Swin's embeddings are normalised with an epsilon of 1e-5 that no config
# changes. Before a normalisation a factor counts for nothing but the epsilon:
# this one makes it act as 0.6e-6, near our 1e-6, and loses no bit.
SCALED = "embeddings.patch_embeddings.projection"
SCALE = 4
# What a config holds that no size of ours changes.
FIXED = {
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-6,
  "num_channels": 3,
  "qkv_bias": True,
}
# Our sizes by their names in a config.
BOTH = {"image_size": "image_size", "patch_size": "patch_size"}
SIZES = {
  "vit": BOTH
  | {
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
  },
  "swin": BOTH
  | {
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
IN_BLOCK = {
  "norm1": "layernorm_before",
  "attn.proj": "attention.output.dense",
  "norm2": "layernorm_after",
  "mlp.fc1": "intermediate.dense",
  "mlp.fc2": "output.dense",
}


def transformers_config(model, labels=None):
  """What config.json holds, for a model that has the same logits.

  The architecture is ViTForImageClassification or SwinForImageClassification;
  without classes it is ViTModel, to be made with add_pooling_layer=False, whose
  first token's last_hidden_state are the features, or SwinModel, whose
  pooler_output they are.

  Images have to be of `model.image_size`. Swin's merged patches are normalised
  with an epsilon of 1e-5 that no config changes, and ours with 1e-6: logits
  of the paper's size differed by up to 1e-5 where the largest was 5.6.

  Args:
    model: a model of `models.build`.
    labels: names of the classes, in order; None calls them LABEL_0 and so on.

  Returns:
    A dict to be written as JSON.

  Raises:
    UserError: transformers cannot express the model, or there are not as many
      labels as classes.
  """
  check(model)
  swin = isinstance(model, models.SwinTransformer)
  type_name = models.name_of(model)
  kind = models.ARCHITECTURES[type_name].transformers
  config = FIXED | {"model_type": type_name}
  for ours, theirs in SIZES[type_name].items():
    value = getattr(model, ours)
    config[theirs] = list(value) if isinstance(value, tuple) else value
  if swin:
    config |= {"use_absolute_embeddings": False}
  else:
    config |= {
      "attention_probs_dropout_prob": 0.0,
      "hidden_dropout_prob": 0.0,
      "intermediate_size": int(model.embed_dim * model.mlp_ratio),
    }
  classes = model.num_classes
  suffix = "ForImageClassification" if classes else "Model"
  return (
    config
    | {"architectures": [kind + suffix]}
    | names_of_classes(labels, classes)
  )


def names_of_classes(labels, classes):
  """The part of a config that names the classes."""
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
  """What config.json says of a model, in our words.

  Args:
    config: its content.

  Returns:
    A dict of architecture, model (the sizes of `models.build`, and its name)
    and classes, which are () where they have no names.

  Raises:
    UserError: it is none of our models.
  """
  kind = config.get("model_type")
  if kind not in SIZES:
    raise UserError(
      f"config.json is of model_type {kind!r}: possible are"
      f" {models.those_with('transformers')}"
    )
  for key, ours in FIXED.items():
    if config.get(key, ours) != ours:
      raise UserError(
        f"config.json has {key}={config[key]!r}, and our {kind} {ours!r}"
      )
  sizes = {"name": kind, "num_classes": 0}
  sizes |= {ours: config[theirs] for ours, theirs in SIZES[kind].items()}
  if kind == "vit":
    sizes["mlp_ratio"] = config["intermediate_size"] / config["hidden_size"]
  labels = []
  if config["architectures"][0].endswith("ForImageClassification"):
    names = config["id2label"]
    labels = [names[str(i)] for i in range(len(names))]
    sizes["num_classes"] = len(labels)
  unnamed = labels == [f"LABEL_{i}" for i in range(len(labels))]
  return {
    "architecture": kind,
    "model": sizes,
    "classes": [] if unnamed else labels,
  }


def image_processor(model, mean, std, resize):
  """What preprocessor_config.json holds, for images as ours are read.

  Where images are cropped, ours are cropped first and then resized, theirs are
  resized first: those that are not square differ a little.

  Args:
    model: a model of `models.build`.
    mean, std: of the channels, in [0, 1].
    resize: "crop" or "squash", as of the data.
  """
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
  return config | {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": S, "width": S},
    "do_center_crop": True,
    "size": {"shortest_edge": S},
  }


def statistics(config):
  """Mean and std of preprocessor_config.json's content, as a dict."""
  return {"mean": config["image_mean"], "std": config["image_std"]}


def check(model):
  """Raises a UserError where transformers cannot express a model."""
  renaming.check(model, "transformers")
  name = models.name_of(model)
  if not models.ARCHITECTURES[name].transformers:
    raise UserError(
      f"transformers has no {name}: possible are"
      f" {models.those_with('transformers')}"
    )
  if not isinstance(model, models.SwinTransformer):
    return
  for stage, _, side in renaming.stages(model):
    if side < model.window_size:
      raise UserError(
        "transformers' Swin has tables of relative positions of one size:"
        f" model.window_size={model.window_size} is larger than the {side}"
        f" patches a side of stage {stage}, where our window shrinks"
      )


def names(name, model):
  """transformers' names of the reference's array."""
  swin = isinstance(model, models.SwinTransformer)
  if name.startswith("head."):
    return [name.replace("head", "classifier", 1)]
  prefix = ("swin." if swin else "vit.") if model.num_classes else ""
  match name.split("."):
    case ["blocks", i, *inner]:
      prefix += f"encoder.layer.{i}."
      theirs = names_in_block(inner, "attention")
    case ["layers", stage, "blocks", i, *inner]:
      prefix += f"encoder.layers.{stage}.blocks.{i}."
      theirs = names_in_block(inner, "self")
    case ["layers", *_]:
      theirs = [f"encoder.{name}"]
    case [("cls_token" | "pos_embed") as module]:
      theirs = [MODULES[module]]
    case [*modules, leaf]:
      theirs = [f"{MODULES['.'.join(modules)]}.{leaf}"]
  return [prefix + x for x in theirs]


def names_in_block(name, attention):
  """The names of an array within a block, given its parts."""
  *modules, leaf = name
  match modules:
    case ["attn"]:
      return [f"attention.{attention}.{leaf}"]
    case ["attn", "qkv"]:
      return [
        f"attention.{attention}.{part}.{leaf}"
        for part in ("query", "key", "value")
      ]
  return [f"{IN_BLOCK['.'.join(modules)]}.{leaf}"]


def to_torch(params, model):
  """As in the package's `to_torch`."""
  check(model)
  state = scaled(renaming.to_torch(params, model, names), model, SCALE)
  return state | reference.position_indices(state)


def from_torch(state_dict, model):
  """As in the package's `from_torch`.

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
  """The state with Swin's projection of patches times a factor."""
  if not isinstance(model, models.SwinTransformer):
    return state
  return {
    name: x * np.float32(factor) if SCALED in name else x
    for name, x in state.items()
  }
