"""AdamW as the paper's two stages use it, from optax's pieces."""

import jax
import jax.numpy as jnp
import optax


def pretrain(
  learning_rate, weight_decay, clip, frozen_steps, last_layer="last_layer"
):
  """AdamW with clipping per tensor, for self-supervised pretraining.

  Weight decay follows a schedule and spares biases and one-dimensional
  parameters; for the first `frozen_steps` the last layer is left out of the
  update altogether: no step, no decay, no moments (Caron et al., 2021,
  appendix C).

  Args:
    learning_rate, weight_decay: functions of the step.
    clip: largest L2 norm of a tensor's gradient; 0 for no clipping.
    frozen_steps: for how many steps the last layer is frozen.
    last_layer: a key on the path of the last layer's parameters.

  Returns:
    An optax transformation.
  """

  def adamw(first_step):
    return optax.adamw(
      lambda step: learning_rate(step + first_step),
      weight_decay=lambda step: weight_decay(step + first_step),
      mask=is_matrix,
    )

  def label(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "last" if last_layer in names(path) else "rest", params
    )

  last = optax.conditionally_mask(
    adamw(frozen_steps), lambda step: step >= frozen_steps
  )
  return optax.chain(
    clip_per_tensor(clip) if clip else optax.identity(),
    optax.partition({"last": last, "rest": adamw(0)}, label),
  )


def finetune(learning_rate, weight_decay):
  """AdamW with one weight decay on every parameter, for fine-tuning.

  Args:
    learning_rate: a function of the step.
    weight_decay: a number.

  Returns:
    An optax transformation.
  """
  return optax.adamw(learning_rate, weight_decay=weight_decay)


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
