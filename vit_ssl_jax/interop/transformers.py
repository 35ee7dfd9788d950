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
  config = {
    "hidden_act": "gelu",
    "image_size": model.image_size,
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
    "patch_size": model.patch_size,
    "qkv_bias": True,
  }
  if isinstance(model, models.SwinTransformer):
    kind = "Swin"
    config |= {
      "model_type": "swin",
      "depths": list(model.depths),
      "drop_path_rate": model.drop_path_rate,
      "embed_dim": model.embed_dim,
      "mlp_ratio": model.mlp_ratio,
      "num_heads": list(model.num_heads),
      "use_absolute_embeddings": False,
      "window_size": model.window_size,
    }
  else:
    kind = "ViT"
    config |= {
      "model_type": "vit",
      "attention_probs_dropout_prob": 0.0,
      "hidden_dropout_prob": 0.0,
      "hidden_size": model.embed_dim,
      "intermediate_size": int(model.embed_dim * model.mlp_ratio),
      "num_attention_heads": model.num_heads,
      "num_hidden_layers": model.depth,
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


def check(model):
  """Raises a UserError where transformers cannot express a model."""
  renaming.check(model, "transformers")
  if isinstance(model, models.CaiT):
    raise UserError("transformers has no CaiT: possible are vit and swin")
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
