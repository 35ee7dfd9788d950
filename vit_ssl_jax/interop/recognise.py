"""Infers the architecture and its sizes from a state dict."""

import math
import re

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import reference

HEADS = ("head.weight", "head.fc.weight", "classifier.weight")
POSITIONS = ("pos_embed", "position_embeddings")
TABLE = "relative_position_bias_table"
# A parameter that an architecture alone has; the first that occurs decides.
MARKS = {"swin": TABLE, "cait": "blocks_token_only", "vit": "cls_token"}


def architecture(names):
  """Infers the architecture from parameters' names, ours or foreign; or ""."""
  text = "\n".join(names)
  return next((arch for arch, mark in MARKS.items() if mark in text), "")


def with_sizes_of(state_dict, model):
  """Returns the model with the weights' classes, image and window size."""
  sizes, windows = {"num_classes": 0}, {}
  for name, x in state_dict.items():
    if name in HEADS:
      sizes["num_classes"] = len(x)
    elif name.endswith(POSITIONS) and x.ndim == 3:
      side = math.isqrt(x.shape[1])  # the class token does not change the root
      sizes["image_size"] = side * model.patch_size
    elif match := re.search(rf"layers\.(\d+)\..*{TABLE}$", name):
      windows[int(match[1])] = (math.isqrt(len(x)) + 1) // 2
  if windows and hasattr(model, "window_size"):
    largest = max(windows.values())
    # A window is smaller only where it fills its stage.
    side = next(
      (w * 2**stage for stage, w in windows.items() if w < largest),
      largest * 2 ** (len(model.depths) - 1),
    )
    sizes |= {"window_size": largest, "image_size": side * model.patch_size}
  return model.clone(**sizes)


def layout(state_dict, model, layouts):
  """Returns the layout that shares the most names with the weights."""
  zeros = reference.template(model, state_dict)

  def in_common(name):
    try:
      names = layouts[name].to_torch(zeros, model).keys()
    except UserError:  # the framework cannot express the model
      return 0
    return len(names & state_dict.keys())

  return max(layouts, key=in_common)
