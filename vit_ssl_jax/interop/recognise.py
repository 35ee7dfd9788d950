"""What the names and shapes of foreign weights tell of their model."""

import math
import re

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import reference

HEADS = ("head.weight", "head.fc.weight", "classifier.weight")
POSITIONS = ("pos_embed", "position_embeddings")
TABLE = "relative_position_bias_table"


def architecture(names):
  """The architecture whose weights have such names, or "".

  It works for our own names as well.
  """
  text = "\n".join(names)
  if TABLE in text:
    return "swin"
  if "blocks_token_only" in text:
    return "cait"
  return "vit" if "cls_token" in text else ""


def with_sizes_of(state_dict, model):
  """A model with those sizes of foreign weights that may be changed.

  Args:
    state_dict: name -> array, in any of the layouts.
    model: a model of `models.build`.

  Returns:
    The model with the weights' number of classes and with an image size, and a
    window size, in which their position embeddings and tables of relative
    positions fit; with the model's own where they tell none.
  """
  sizes, windows = {"num_classes": 0}, {}
  for name, x in state_dict.items():
    if name in HEADS:
      sizes["num_classes"] = len(x)
    elif name.endswith(POSITIONS) and x.ndim == 3:
      side = math.isqrt(x.shape[1])  # the class token's adds nothing to a root
      sizes["image_size"] = side * model.patch_size
    elif found := re.search(rf"layers\.(\d+)\..*{TABLE}$", name):
      windows[int(found[1])] = (math.isqrt(len(x)) + 1) // 2
  if windows and isinstance(model, models.SwinTransformer):
    largest = max(windows.values())
    # A window is smaller only where it fills its stage.
    side = next(
      (w * 2**stage for stage, w in windows.items() if w < largest),
      largest * 2 ** (len(model.depths) - 1),
    )
    sizes |= {"window_size": largest, "image_size": side * model.patch_size}
  return model.clone(**sizes)


def layout(state_dict, model, layouts):
  """The name of that layout which has most names in common with weights.

  Args:
    state_dict: name -> array.
    model: a model of their sizes, as `with_sizes_of` gives it.
    layouts: name -> module.
  """
  zeros = reference.template(model, state_dict)

  def in_common(name):
    try:
      names = layouts[name].to_torch(zeros, model).keys()
    except UserError:  # the model cannot be expressed in it
      return 0
    return len(names & state_dict.keys())

  return max(layouts, key=in_common)
