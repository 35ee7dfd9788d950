"""Parameters under other frameworks' names and layouts.

Layouts are "reference", the paper's own PyTorch classes, "timm", with
`timm_arguments`, and "transformers", with `transformers_config`.
"""

from vit_ssl_jax.errors import UserError, did_you_mean
from vit_ssl_jax.interop import reference, timm, transformers
from vit_ssl_jax.interop.timm import timm_arguments
from vit_ssl_jax.interop.transformers import transformers_config

LAYOUTS = {
  "reference": reference,
  "timm": timm,
  "transformers": transformers,
}


def to_torch(params, model, layout="reference"):
  """Converts parameters to another framework's names and layouts.

  Args:
    params: parameters of `model`, as returned by `model.init`.
    model: a model of `models.build`, or, in the reference's layout alone, a
      `models.ProjectionHead`.
    layout: a key of `LAYOUTS`.

  Returns:
    A dict from name to NumPy array: float32, and int64 for the constant
    `relative_position_index` of Swin, which timm alone does not keep.

  Raises:
    UserError: unknown layout, or a model that the framework cannot express.
  """
  return find_layout(layout).to_torch(params, model)


def from_torch(state_dict, model, layout="reference"):
  """Converts another framework's state dict to parameters, strictly by name.

  Args:
    state_dict: name -> array (anything that NumPy reads).
    model: as in `to_torch`; a head's input width is read from the weights.
    layout: a key of `LAYOUTS`.

  Returns:
    The parameters of `model`, float32.

  Raises:
    UserError: unknown layout, a model that the framework cannot express, or
      names or shapes that do not fit, all of which it lists.
  """
  return find_layout(layout).from_torch(state_dict, model)


def find_layout(name):
  if name not in LAYOUTS:
    hint = did_you_mean(name, LAYOUTS)
    hint = hint or f": possible are {', '.join(LAYOUTS)}"
    raise UserError(f"unknown layout {name!r}{hint}")
  return LAYOUTS[name]


__all__ = [
  "LAYOUTS",
  "from_torch",
  "timm_arguments",
  "to_torch",
  "transformers_config",
]
