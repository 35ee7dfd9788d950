"""Whether a model's sizes fit together; config keys are called model.NAME."""

import dataclasses
import numbers

from vit_ssl_jax.errors import UserError

LOCALITIES = ("", "spt", "lsa", "spt+lsa")


def check(model):
  """Raises a UserError where what all architectures have does not fit."""
  for field in dataclasses.fields(model):
    check_integer(field.name, field.type, getattr(model, field.name))
  if not model.embed_dim * model.mlp_ratio >= 1:
    raise UserError(
      f"model.mlp_ratio={model.mlp_ratio} leaves an MLP without a hidden unit"
    )
  if model.locality not in LOCALITIES:
    known = ", ".join(map(repr, LOCALITIES))
    raise UserError(
      f"model.locality={model.locality!r} is unknown: possible are {known}"
    )
  if model.image_size < model.patch_size:
    raise UserError(
      f"images of {model.image_size} pixels are smaller than a patch of"
      f" {model.patch_size}: model.patch_size can be at most {model.image_size}"
    )
  if model.image_size % model.patch_size:
    raise UserError(
      f"model.image_size={model.image_size} is not a multiple of"
      f" model.patch_size={model.patch_size}"
    )


def check_heads(model, width, heads):
  """Raises a UserError where heads do not divide a width."""
  if width % heads:
    raise UserError(
      f"model.num_heads={model.num_heads}: {heads} heads do not divide a width"
      f" of {width} (model.embed_dim={model.embed_dim})"
    )


def check_integer(name, kind, value):
  """Raises a UserError where a size has to be an integer, and is none."""
  if kind not in (int, tuple[int, ...]):
    return
  least = int(name != "num_classes")

  def fits(x):
    number = isinstance(x, numbers.Integral) and not isinstance(x, bool)
    return number and x >= least

  if kind is int:
    right, what = fits(value), "a whole number"
  else:
    right = isinstance(value, tuple) and value and all(map(fits, value))
    what = "whole numbers, one for each stage,"
  if not right:
    raise UserError(f"model.{name}={value} has to be {what} at least {least}")
