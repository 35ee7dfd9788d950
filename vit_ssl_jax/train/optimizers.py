"""AdamW as the paper's two stages use it, and Muon, from optax's pieces."""

import functools

import jax
import jax.numpy as jnp
import optax
from optax import contrib

LAST_LAYER = "last_layer"  # of the head, a name on its parameters' path


def pretrain(learning_rate, weight_decay, clip, frozen_steps, name="adamw"):
  """AdamW with clipping per tensor, for self-supervised pretraining.

  Weight decay follows a schedule and spares biases and one-dimensional
  parameters; for the first `frozen_steps` the last layer is left out of the
  update altogether: no step, no decay, no moments (Caron et al., 2021,
  appendix C).

  Args:
    learning_rate, weight_decay: functions of the step.
    clip: largest L2 norm of a tensor's gradient; 0 for no clipping.
    frozen_steps: for how many steps the last layer is frozen.
    name: "adamw", or "muon" for the matrices of the blocks.

  Returns:
    An optax transformation.
  """

  def adamw(first_step):
    return optax.adamw(
      lambda step: learning_rate(step + first_step),
      weight_decay=lambda step: weight_decay(step + first_step),
      mask=is_matrix,
    )

  last = optax.conditionally_mask(
    adamw(frozen_steps), lambda step: step >= frozen_steps
  )
  parts = {"last": last, "rest": adamw(0)}
  if name == "muon":
    parts["blocks"] = muon(learning_rate, weight_decay)
  return optax.chain(
    clip_per_tensor(clip) if clip else optax.identity(),
    optax.partition(parts, functools.partial(labels, parts)),
  )


def finetune(learning_rate, weight_decay, name="adamw"):
  """AdamW with one weight decay on every parameter, for fine-tuning.

  Args:
    learning_rate: a function of the step.
    weight_decay: a number.
    name: of `pretrain`.

  Returns:
    An optax transformation.
  """
  adamw = optax.adamw(learning_rate, weight_decay=weight_decay)
  if name == "adamw":
    return adamw
  parts = {"rest": adamw, "blocks": muon(learning_rate, weight_decay)}
  return optax.partition(parts, functools.partial(labels, parts))


def muon(learning_rate, weight_decay):
  """Muon (Jordan et al., 2024) for matrices, a scan's blocks one by one.

  Its updates are scaled to the size of AdamW's (Liu et al., 2025,
  arXiv 2502.16982, section 2.2), so that both take the same learning rate and
  weight decay.
  """

  def dimensions(params):
    return jax.tree.map(
      lambda x: contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), params
    )

  return contrib.muon(
    learning_rate,
    weight_decay=weight_decay,
    consistent_rms=0.2,
    muon_weight_dimension_numbers=dimensions,
  )


def labels(parts, params):
  """Which of the parts, "last", "blocks" or "rest", each parameter is of."""

  def label(path, _):
    *above, last = names(path)
    if "last" in parts and LAST_LAYER in above:
      return "last"
    matrix = last == "kernel" and any(x.startswith("blocks") for x in above)
    return "blocks" if "blocks" in parts and matrix else "rest"

  return jax.tree_util.tree_map_with_path(label, params)


def clip_per_tensor(largest):
  """Scales each tensor's gradient down to an L2 norm of at most `largest`.

  A tensor is what the model's definition calls one: blocks that are stacked
  for a scan are clipped one by one.
  """

  def clip(path, gradient):
    axes = range(stacked_axes(path), gradient.ndim)
    norm = jnp.sqrt(jnp.sum(gradient**2, axis=tuple(axes), keepdims=True))
    return gradient * jnp.minimum(1.0, largest / (norm + 1e-6))

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(clip, updates)
  )


def is_matrix(params):
  """True where weight decay applies: neither a bias nor one-dimensional."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      names(path)[-1] != "bias" and x.ndim - stacked_axes(path) > 1
    ),
    params,
  )


def stacked_axes(path):
  """How many leading axes of a parameter run over a scan's blocks."""
  return int("blocks" in names(path))


def names(path):
  return [str(getattr(key, "key", key)) for key in path]
