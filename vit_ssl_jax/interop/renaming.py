"""Renaming of the reference's parameters, for timm and transformers.

A framework's `names(name, model)` maps the reference's name of an array to the
framework's names, one for each of the equal parts that its rows are split into.
"""

import numpy as np

from vit_ssl_jax import models
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import reference


def check(model, framework):
  """Checks that "timm" or "transformers" can express a model."""
  if isinstance(model, models.ProjectionHead):
    raise UserError(f"{framework} has no counterpart of the projection head")
  arch = models.name_of(model)
  if not getattr(models.ARCHITECTURES[arch], framework):
    raise UserError(
      f"{framework} has no {arch}: possible are {models.those_with(framework)}"
    )
  check_locality(model, framework)


def check_locality(model, framework):
  """Checks that a model has no locality, which no framework has."""
  if model.locality:
    raise UserError(
      f"{framework} has no counterpart of model.locality={model.locality!r}:"
      " its models have neither shifted patch tokenisation nor locality"
      " self-attention"
    )


def to_torch(params, model, names):
  """Converts parameters to a framework's names, without constants."""
  state = {}
  for name, x in reference.weights(params, model).items():
    foreign = names(name, model)
    state |= zip(foreign, np.split(x, len(foreign)), strict=True)
  return state


def from_torch(state_dict, model, names, to_torch):
  """Inverts the framework's own `to_torch(params, model)`, strictly."""
  state = reference.as_floats(state_dict)
  zeros = reference.template(model, state)
  models.check_parameters(to_torch(zeros, model), state, "the state dict")
  back = {
    name: np.concatenate([state[foreign] for foreign in names(name, model)])
    for name in reference.weights(zeros, model)
  }
  return reference.from_weights(back, zeros, model)


def stages(model):
  """Yields the number, depth and patches a side of each stage of Swin."""
  for stage, depth in enumerate(model.depths):
    yield stage, depth, model.side // 2**stage
