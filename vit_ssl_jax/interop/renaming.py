"""What the layouts of other frameworks share: they rename the reference's.

A framework's `names(name, model)` gives, for the reference's name of an array,
the list of its own, one for each of the equal parts that rows are cut into.
"""

import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import reference


def check(model, framework):
  """Raises a UserError where no framework has a counterpart of a model."""
  if isinstance(model, models.ProjectionHead):
    raise UserError(f"{framework} has no counterpart of the projection head")
  if model.locality:
    raise UserError(
      f"{framework} has no counterpart of model.locality={model.locality!r}:"
      " its models have neither shifted patch tokenisation nor locality"
      " self-attention"
    )


def to_torch(params, model, names):
  """A model's parameters under the framework's names, without constants."""
  state = {}
  for name, x in reference.weights(params, model).items():
    theirs = names(name, model)
    state |= zip(theirs, np.split(x, len(theirs)), strict=True)
  return state


def from_torch(state_dict, model, names, to_torch):
  """The inverse of the framework's own `to_torch(params, model)`; strict."""
  state = reference.as_floats(state_dict)
  zeros = reference.template(model, state)
  models.check_parameters(to_torch(zeros, model), state, "the state dict")
  reference_names = reference.weights(zeros, model)
  back = {
    name: np.concatenate([state[theirs] for theirs in names(name, model)])
    for name in reference_names
  }
  return reference.from_weights(back, zeros, model)


def stages(model):
  """Of each stage of Swin: its number, depth and patches a side."""
  for stage, depth in enumerate(model.depths):
    yield stage, depth, model.side // 2**stage
