"""Pictures of a model: attention maps and feature embeddings."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from sklearn import decomposition, manifold

from vit_ssl_jax.errors import UserError

KINDS = ("attention", "features")
MASS = 0.6  # share of the attention in a mask, as in DINO's figures
NEIGHBORS = 8


def attention(networks, dataset, count=8):
  """Draws attention on test images, one of each class.

  Args:
    networks: title -> `model.Network`. A single one is drawn head by head.
    dataset: a `load.Dataset` at their image size.
    count: images at most.
  """
  images = examples(dataset, count)
  maps_of = {k: x.attention(images, len(images)) for k, x in networks.items()}
  return draw_attention(images, maps_of, heads=len(networks) == 1)


def features(network, dataset, batch_size, count=2000):
  """Draws the features of at most `count` test images.

  Raises:
    UserError: there are fewer than 10 test images.
  """
  total = len(dataset.test_labels)
  if total < 10:
    raise UserError(f"--suite=features needs 10 test images, not {total}")
  chosen = np.sort(np.random.default_rng(0).permutation(total)[:count])
  images = np.asarray(dataset.test_images[chosen])
  labels = np.asarray(dataset.test_labels)[chosen]
  vectors = network.features(images, batch_size)
  return draw_features(vectors, labels, images, dataset.classes)


def examples(dataset, count):
  """The first test image of each of `count` classes at most."""
  _, first = np.unique(np.asarray(dataset.test_labels), return_index=True)
  return np.asarray(dataset.test_images[first[:count]])


def blank_axes(fig, rows, columns):
  """Adds axes without frames to a figure; returns them, (rows, columns)."""
  axes = fig.subplots(rows, columns, squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  return axes


def draw_attention(images, maps_of, heads=True):
  """Draws images, attention maps, and masks of the most attended patches.

  Args:
    images: (B, S, S, 3) uint8.
    maps_of: model's title -> maps (B, heads, rows, columns) of
      `models.attention_maps`.
    heads: draws each head too, beside the mean over the heads.
  """
  columns = 1 + sum(2 + heads * maps.shape[1] for maps in maps_of.values())
  size = (1.1 * columns + 0.2, 1.1 * len(images) + 0.6)
  fig = Figure(figsize=size, layout="constrained")
  axes = blank_axes(fig, len(images), columns)
  for i, image in enumerate(images):
    for axis in axes[i]:
      axis.imshow(image)
    titles, free = ["image"], iter(axes[i, 1:])
    for title, maps in maps_of.items():
      mean = maps[i].mean(0)
      overlay(next(free), mean)
      darken(next(free), image, mask(mean))
      titles += [title.rstrip("/")[-24:], f"{MASS:.0%} of it"]
      for number, head in enumerate(maps[i] if heads else ()):
        overlay(next(free), head)
        titles.append(f"head {number + 1}")
  for axis, title in zip(axes[0], titles, strict=True):
    axis.set_title(title, fontsize=8)
  return fig


def mask(maps, mass=MASS):
  """Selects the fewest patches that hold a share of the attention.

  Args:
    maps: (..., rows, columns), at least 0.
    mass: the share.

  Returns:
    The same shape, bool.
  """
  flat = maps.reshape(*maps.shape[:-2], -1)
  order = np.argsort(-flat, -1)
  ordered = np.take_along_axis(flat, order, -1)
  sums = np.cumsum(ordered, -1)
  selected = sums - ordered < mass * sums[..., -1:]
  masks = np.zeros(flat.shape, bool)
  np.put_along_axis(masks, order, selected, -1)
  return masks.reshape(maps.shape)


def overlay(axis, attention):
  """Draws attention (rows, columns) over the image of an axis."""
  left, right, bottom, top = axis.images[0].get_extent()
  axis.imshow(
    attention,
    cmap="inferno",
    alpha=0.6,
    interpolation="bilinear",
    extent=(left, right, bottom, top),
  )


def darken(axis, image, mask):
  """Draws an image, dark outside of a mask (rows, columns)."""
  factor = image.shape[0] // mask.shape[0]
  mask = np.kron(mask, np.ones((factor, factor)))[..., None]
  axis.imshow((image * (0.25 + 0.75 * mask)).astype(np.uint8))


def draw_features(features, labels, images, classes):
  """Draws PCA, t-SNE, and the nearest neighbours of some images.

  Args:
    features: (N, D), N of at least 10.
    labels: (N,) integers.
    images: (N, S, S, 3) uint8.
    classes: their names.
  """
  fig = Figure(figsize=(12, 11), layout="constrained")
  above, below = fig.subfigures(2, height_ratios=[1.2, 1])
  perplexity = min(30, (len(features) - 1) / 3)
  methods = {
    "PCA": decomposition.PCA(2, random_state=0),
    "t-SNE": manifold.TSNE(
      init="pca",
      # The approximation is slower for few points.
      method="exact" if len(features) <= 500 else "barnes_hut",
      perplexity=perplexity,
      max_iter=500,
      random_state=0,
    ),
  }
  axes = above.subplots(1, 2)
  for axis, (title, method) in zip(axes, methods.items(), strict=True):
    scatter(axis, method.fit_transform(features), labels, classes)
    axis.set_title(title)
  axes[-1].legend(
    loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, markerscale=2
  )
  draw_neighbors(below, features, labels, images, classes)
  return fig


def scatter(axis, points, labels, classes):
  """Draws points (N, 2), one color a class; the first twenty are named."""
  colormap = mpl.colormaps["tab20" if len(classes) > 10 else "tab10"]
  for number, name in enumerate(classes):
    color = colormap(number % colormap.N)
    label = name if number < 20 else None
    axis.scatter(*points[labels == number].T, s=6, color=color, label=label)
  axis.set(xticks=[], yticks=[])


def draw_neighbors(fig, features, labels, images, classes):
  """Draws an image of each of six classes and its nearest neighbours."""
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  present = np.unique(labels)[:6]
  fig.suptitle("Nearest neighbours (red: of another class)")
  axes = blank_axes(fig, len(present), 1 + NEIGHBORS)
  for line, label in zip(axes, present, strict=True):
    query = np.flatnonzero(labels == label)[0]
    order = np.argsort(-(unit @ unit[query]))
    nearest = [query, *order[order != query][:NEIGHBORS]]
    for axis, i in zip(line, nearest, strict=False):
      axis.imshow(images[i])
      title = axis.set_title(classes[labels[i]], fontsize=7)
      if labels[i] != label:
        title.set_color("tab:red")
