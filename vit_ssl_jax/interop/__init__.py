"""Parameters under other frameworks' names and layouts.

Layouts are "reference", the paper's own PyTorch classes, "timm", which
`timm_arguments` goes with, and "transformers", with `transformers_config`.
"""

from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import reference, timm, transformers
from vit_ssl_jax.interop.timm import timm_arguments
from vit_ssl_jax.interop.transformers import transformers_config

LAYOUTS = {
  "reference": reference,
  "timm": timm,
  "transformers": transformers,
}


def to_torch(params, model, layout="reference"):
  """Gives parameters another framework's names and layouts.

  Args:
    params: parameters of `model`, as `model.init` made them.
    model: a model of `models.build`, or, in the reference's layout alone, a
      `models.ProjectionHead`.
    layout: a key of `LAYOUTS`.

  Returns:
    A dict from name to NumPy array: float32, and int64 for the constant
    `relative_position_index` of Swin, which timm alone does not keep.

  Raises:
    UserError: an unknown layout, or a model that the framework cannot express.
  """
  return module_of(layout).to_torch(params, model)


def from_torch(state_dict, model, layout="reference"):
  """Reads parameters of another framework's names, strictly by name.

  Args:
    state_dict: name to array (anything that NumPy reads).
    model: as in `to_torch`; a head's input width is read from the weights.
    layout: a key of `LAYOUTS`.

  Returns:
    The parameters of `model`, float32.

  Raises:
    UserError: as of `to_torch`; or names are missing or left over, or shapes
      differ, and it lists them.
  """
  return module_of(layout).from_torch(state_dict, model)


def module_of(layout):
  if layout not in LAYOUTS:
    known = ", ".join(map(repr, LAYOUTS))
    raise UserError(f"unknown layout {layout!r}: possible are {known}")
  return LAYOUTS[layout]


__all__ = [
  "LAYOUTS",
  "from_torch",
  "timm_arguments",
  "to_torch",
  "transformers_config",
]
