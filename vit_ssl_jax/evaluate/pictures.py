"""Pictures of a model: attention maps and feature embeddings."""

import matplotlib as mpl
import numpy as np
import threadpoolctl
from matplotlib.figure import Figure
from sklearn import decomposition, manifold

from vit_ssl_jax.errors import UserError

KINDS = ("attention", "features")
MASS = 0.6  # share of the attention in a mask, as in DINO's figures
NEIGHBORS = 8


def attention(networks, dataset, count=8):
  """Draws test images, attention maps, and masks of the most attended patches.

  Args:
    networks: title -> `model.Network`; a single one is drawn head by head too.
    dataset: a `load.Dataset` at their image size, of which one image of each
      class is drawn.
    count: images at most.
  """
  images = examples(dataset, count)
  maps_of = {k: x.attention(images, len(images)) for k, x in networks.items()}
  heads = len(networks) == 1
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


def features(network, dataset, batch_size, count=2000):
  """Draws PCA, t-SNE and nearest neighbours of at most `count` test images.

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
  fig = Figure(figsize=(12, 11), layout="constrained")
  above, below = fig.subfigures(2, height_ratios=[1.2, 1])
  tsne = {"init": "pca", "max_iter": 500, "random_state": 0}
  tsne["perplexity"] = min(30, (len(chosen) - 1) / 3)
  pca, tsne = decomposition.PCA(2, random_state=0), manifold.TSNE(**tsne)
  axes = above.subplots(1, 2)
  for axis, title, method in zip(
    axes, ("PCA", "t-SNE"), (pca, tsne), strict=True
  ):
    with threadpoolctl.threadpool_limits(1):  # t-SNE's threads mostly wait
      points = method.fit_transform(vectors)
    scatter(axis, points, labels, dataset.classes)
    axis.set_title(title)
  right = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
  axes[-1].legend(fontsize=7, markerscale=2, **right)
  draw_neighbors(below, vectors, labels, images, dataset.classes)
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
