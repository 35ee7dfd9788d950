"""AdamW for the two stages, and Muon for the matrices of blocks."""

import functools

import jax
import jax.numpy as jnp
import optax
from optax import contrib

LAST_LAYER = "last_layer"  # of the projection head, on its parameters' paths


def pretrain(learning_rate, weight_decay, clip, frozen_steps, name="adamw"):
  """AdamW with per-tensor clipping and a frozen last layer.

  Weight decay spares biases and one-dimensional parameters. A frozen layer is
  not updated, not decayed, and has no moments (Caron et al., 2021, appendix C).

  Args:
    learning_rate, weight_decay: functions of the step.
    clip: largest L2 norm of a tensor's gradient; 0 for no clipping.
    frozen_steps: number of steps for which the last layer is frozen.
    name: "adamw", or "muon" for the matrices of blocks.
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
  """AdamW, or Muon as in `pretrain`, with weight decay on every parameter."""
  adamw = optax.adamw(learning_rate, weight_decay=weight_decay)
  if name == "adamw":
    return adamw
  parts = {"rest": adamw, "blocks": muon(learning_rate, weight_decay)}
  return optax.partition(parts, functools.partial(labels, parts))


def muon(learning_rate, weight_decay):
  """Muon (Jordan et al., 2024), on each block's matrices separately.

  Updates have the root mean square of AdamW's, and so take its learning rate
  and weight decay (Liu et al., 2025, arXiv 2502.16982, section 2.2).
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
  """Labels each parameter "last", "blocks" or "rest", the keys of `parts`."""

  def label(path, _):
    *above, last = names(path)
    if "last" in parts and LAST_LAYER in above:
      return "last"
    matrix = last == "kernel" and any(x.startswith("blocks") for x in above)
    return "blocks" if "blocks" in parts and matrix else "rest"

  return jax.tree_util.tree_map_with_path(label, params)


def clip_per_tensor(largest):
  """Clips the L2 norm of each tensor; stacked blocks are separate tensors."""

  def clip(path, gradient):
    axes = range(stacked_axes(path), gradient.ndim)
    norm = jnp.sqrt(jnp.sum(gradient**2, axis=tuple(axes), keepdims=True))
    return gradient * jnp.minimum(1.0, largest / (norm + 1e-6))

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(clip, updates)
  )


def is_matrix(params):
  """True for parameters with weight decay: neither biases nor 1-D."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      names(path)[-1] != "bias" and x.ndim - stacked_axes(path) > 1
    ),
    params,
  )


def stacked_axes(path):
  """The number of leading axes that stack blocks for a scan."""
  return int("blocks" in names(path))


def names(path):
  return [str(getattr(key, "key", key)) for key in path]
