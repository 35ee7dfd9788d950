"""Losses of both stages. Logits and probabilities are float32."""

import jax
import jax.numpy as jnp
import optax

from vit_ssl_jax import models


def centered_targets(logits, center, temperature):
  """Teacher targets by centring and sharpening (Caron et al., 2021, eq. 1, 4).

  Args:
    logits: (..., K) the teacher's outputs.
    center: (K,) running mean of the teacher's outputs.
    temperature: a number above 0; the smaller, the sharper.

  Returns:
    (..., K) probabilities.
  """
  center = jnp.broadcast_to(center, logits.shape)
  return jax.nn.softmax((logits - center) / temperature)


def sinkhorn_targets(logits, temperature, iterations=3):
  """Teacher targets by Sinkhorn-Knopp (Caron et al., 2020, section 3.1).

  Every output ends with nearly the same share of the batch, so that the
  targets can collapse neither to one output nor to the uniform distribution.

  Args:
    logits: (..., K) the teacher's outputs; all leading axes are one batch.
    temperature: a number above 0.
    iterations: of normalising rows and columns in turn.

  Returns:
    (..., K) probabilities.
  """
  scores = logits / temperature
  batch = tuple(range(logits.ndim - 1))
  # Normalising in the logarithm cannot overflow at small temperatures.
  for _ in range(iterations):
    scores -= jax.nn.logsumexp(scores, axis=batch, keepdims=True)
    scores -= jax.nn.logsumexp(scores, axis=-1, keepdims=True)
  return jnp.exp(scores)


def dino(student_logits, teacher_probabilities, temperature):
  """DINO loss: cross-entropy of a student's views against a teacher's.

  The mean over all pairs of one of the teacher's G global views and one of the
  student's V views that is not the same view (Caron et al., 2021, eq. 3; the
  paper's eq. 1).

  Args:
    student_logits: (B, V, K), the first G of the V views being the global ones.
    teacher_probabilities: (B, G, K).
    temperature: the student's temperature.

  Returns:
    The loss, a scalar.
  """
  V, G = student_logits.shape[1], teacher_probabilities.shape[1]
  log_p = jax.nn.log_softmax(student_logits / temperature)
  # All pairs at once, less the pairs of a view with itself.
  every = jnp.sum(log_p, 1) * jnp.sum(teacher_probabilities, 1)
  same = jnp.sum(log_p[:, :G] * teacher_probabilities, 1)
  return -jnp.mean(jnp.sum(every - same, -1)) / (G * (V - 1))


def reconstruction(predicted, patches, visible):
  """Mean squared error of hidden patches (He et al., 2022, section 3).

  Args:
    predicted: (B, N, P).
    patches: (B, N, P) their pixels, which are normalised here, each patch by
      its own mean and standard deviation.
    visible: (B, k) indices of the visible patches, k < N.

  Returns:
    The loss, a scalar.
  """
  mean = jnp.mean(patches, -1, keepdims=True)
  variance = jnp.var(patches, -1, keepdims=True)
  error = predicted - (patches - mean) * jax.lax.rsqrt(variance + 1e-6)
  N = patches.shape[1]
  hidden = 1 - jnp.sum(jax.nn.one_hot(visible, N), 1)
  return jnp.sum(jnp.mean(error**2, -1) * hidden) / jnp.sum(hidden)


def update_center(center, teacher_logits, momentum):
  """Moving average of the teacher's mean output (Caron et al., 2021, eq. 4).

  Args:
    center: (K,).
    teacher_logits: (..., K); all leading axes are one batch.
    momentum: weight of the old centre.

  Returns:
    (K,) the new centre.
  """
  mean = jnp.mean(teacher_logits, axis=range(teacher_logits.ndim - 1))
  return center * momentum + mean * (1 - momentum)


def entropy_and_divergence(probabilities):
  """Measures how far the teacher's targets are from collapse.

  Args:
    probabilities: (..., K); all leading axes are one batch.

  Returns:
    Two scalars in nats: the mean entropy of a target (ln K where the targets
    are uniform, 0 where they are one-hot), and the mean Kullback-Leibler
    divergence of a target from the batch's mean (0 where all images get the
    same target).
  """
  # Axes are not merged: one of them may be split over devices.
  batch = tuple(range(probabilities.ndim - 1))
  entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(probabilities), -1))
  of_mean = jnp.sum(jax.scipy.special.entr(jnp.mean(probabilities, batch)))
  return entropy, of_mean - entropy


def classification(logits, targets, smoothing):
  """Cross-entropy with label smoothing (Szegedy et al., 2016, section 7).

  Args:
    logits: (B, C).
    targets: (B, C) one-hot, or mixed labels; each row sums to 1.
    smoothing: the share of each target that is spread evenly over C classes.

  Returns:
    The mean loss, a scalar.
  """
  targets = optax.smooth_labels(targets, smoothing)
  return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def dense_relative_localization(predict, grid, keys, pairs):
  """Dense relative localisation (Liu et al., 2021, arXiv 2106.03746).

  Args:
    predict: a `models.OffsetHead` with its parameters: two tokens, one behind
      the other, (B, M, 2 · D) -> (B, M, 2).
    grid: (B, h, w, D) tokens.
    keys: (B,) PRNG keys, one for each image.
    pairs: M, the number of random pairs of tokens in each image.

  Returns:
    `offset_error` of the predictions, a scalar.
  """
  B, h, w, D = grid.shape
  first, second = jax.vmap(
    lambda key: sample_pairs(key, pairs, (h, w)), out_axes=1
  )(keys)
  tokens = grid.reshape(B, h * w, D)

  ends = [
    models.take(tokens, place[..., 0] * w + place[..., 1])
    for place in (first, second)
  ]
  offsets = predict(jnp.concatenate(ends, -1))
  return offset_error(offsets, first, second, (h, w))


def sample_pairs(key, pairs, grid):
  """Rows and columns (2, M, 2) of M random pairs of tokens of a grid (h, w)."""
  ends = jnp.asarray(grid)[None, None]
  return jax.random.randint(key, (2, pairs, 2), 0, ends)


def offset_error(offsets, first, second, grid):
  """The mean absolute error of predicted distances of tokens.

  Distances are absolute, by rows and by columns, as shares of the grid.

  Args:
    offsets: (B, M, 2) predicted distances of M pairs, by rows and by columns.
    first, second: (B, M, 2) the pairs' positions, integers.
    grid: (h, w) the number of rows and of columns.

  Returns:
    A scalar.
  """
  sides = jnp.asarray(grid, jnp.float32)[None, None]
  return jnp.mean(jnp.abs(offsets - jnp.abs(first - second) / sides))
