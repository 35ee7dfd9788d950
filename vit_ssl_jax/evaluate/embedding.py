"""Pictures of features: where images lie, and what lies beside them."""

import matplotlib as mpl
import numpy as np
from matplotlib import figure
from sklearn import decomposition, manifold

NEIGHBORS = 8


def draw(features, labels, images, classes):
  """Draws PCA and t-SNE, and some images with their nearest neighbours.

  Args:
    features: (N, D), N of at least 10.
    labels: (N,) integers.
    images: (N, S, S, 3) uint8.
    classes: their names.

  Returns:
    A matplotlib figure.
  """
  fig = figure.Figure(figsize=(12, 11), layout="constrained")
  above, below = fig.subfigures(2, height_ratios=[1.2, 1])
  axes = above.subplots(1, 2)
  found = embeddings(features)
  for axis, (title, places) in zip(axes, found.items(), strict=True):
    scatter(axis, places, labels, classes)
    axis.set_title(title)
  axes[-1].legend(
    loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, markerscale=2
  )
  draw_neighbors(below, features, labels, images, classes)
  return fig


def embeddings(features):
  """Name -> (N, 2)."""
  perplexity = min(30, (len(features) - 1) / 3)
  tsne = manifold.TSNE(init="pca", perplexity=perplexity, random_state=0)
  return {
    "PCA": decomposition.PCA(2, random_state=0).fit_transform(features),
    "t-SNE": tsne.fit_transform(features),
  }


def scatter(axis, places, labels, classes):
  """Points (N, 2), one color a class; the first twenty are named."""
  colormap = mpl.colormaps["tab20" if len(classes) > 10 else "tab10"]
  for number, name in enumerate(classes):
    at = places[labels == number]
    axis.scatter(
      *at.T,
      s=6,
      color=colormap(number % colormap.N),
      label=name if number < 20 else None,
    )
  axis.set_xticks([])
  axis.set_yticks([])


def draw_neighbors(fig, features, labels, images, classes):
  """One image of each of some classes, and the images nearest to it."""
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  present = np.unique(labels)[:6]
  axes = fig.subplots(len(present), 1 + NEIGHBORS, squeeze=False)
  fig.suptitle("Nearest neighbours (red: of another class)")
  for line, label in zip(axes, present, strict=True):
    query = np.flatnonzero(labels == label)[0]
    order = np.argsort(-(unit @ unit[query]))
    near = [query, *order[order != query][:NEIGHBORS]]
    for axis in line:
      axis.set_axis_off()
    for axis, i in zip(line, near, strict=False):
      axis.imshow(images[i])
      title = axis.set_title(classes[labels[i]], fontsize=7)
      if labels[i] != label:
        title.set_color("tab:red")
