"""Pictures of where a model looks."""

import numpy as np
from matplotlib import figure

MASS = 0.6  # of the attention that is shown as a mask, as DINO's authors do


def mask(maps, mass=MASS):
  """The fewest patches that have so much of the attention.

  Args:
    maps: (..., rows, columns), at least 0.
    mass: a share of their sum.

  Returns:
    The same shape, bool.
  """
  flat = maps.reshape(*maps.shape[:-2], -1)
  order = np.argsort(-flat, -1)
  sums = np.cumsum(np.take_along_axis(flat, order, -1), -1)
  before = sums - np.take_along_axis(flat, order, -1)
  kept = before < mass * sums[..., -1:]
  found = np.zeros(flat.shape, bool)
  np.put_along_axis(found, order, kept, -1)
  return found.reshape(maps.shape)


def draw(images, models, heads=True):
  """Draws images beside the attention on them.

  Args:
    images: (B, S, S, 3) uint8.
    models: title -> maps (B, heads, rows, columns) of `models.attention_maps`.
    heads: whether each head has a column, beside the mean of all.

  Returns:
    A matplotlib figure.
  """
  columns = 1 + sum(2 + heads * maps.shape[1] for maps in models.values())
  size = (1.1 * columns + 0.2, 1.1 * len(images) + 0.6)
  fig = figure.Figure(figsize=size, layout="constrained")
  axes = fig.subplots(len(images), columns, squeeze=False)
  for row, (image, line) in enumerate(zip(images, axes, strict=True)):
    for axis in line:
      axis.set_axis_off()
      axis.imshow(image)
    titles = ["image"]
    free = iter(line[1:])
    for title, maps in models.items():
      mean = maps[row].mean(0)
      overlay(next(free), mean)
      outside(next(free), image, mask(mean))
      titles += [title.rstrip("/")[-24:], f"{MASS:.0%} of it"]
      for number, one in enumerate(maps[row] if heads else ()):
        overlay(next(free), one)
        titles.append(f"head {number + 1}")
    if row == 0:
      for axis, title in zip(line, titles, strict=True):
        axis.set_title(title, fontsize=8)
  return fig


def overlay(axis, attention):
  """Lays attention (rows, columns) over the image that is drawn."""
  left, right, bottom, top = axis.images[0].get_extent()
  axis.imshow(
    attention,
    cmap="inferno",
    alpha=0.6,
    interpolation="bilinear",
    extent=(left, right, bottom, top),
  )


def outside(axis, image, inside):
  """Darkens what is outside of a mask (rows, columns)."""
  factor = image.shape[0] // inside.shape[0]
  large = np.kron(inside, np.ones((factor, factor)))[..., None]
  axis.imshow((image * (0.25 + 0.75 * large)).astype(np.uint8))
