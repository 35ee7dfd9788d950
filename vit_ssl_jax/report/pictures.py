"""Pictures of a run: curves, views of an image, attention maps."""

import jax
import numpy as np
from matplotlib import figure

from vit_ssl_jax import models
from vit_ssl_jax.augment import multi_crop
from vit_ssl_jax.run import metrics


def summary(path, config, images, maps, pretraining, finetuning):
  """Draws one picture of a pretraining and the fine-tunings that follow.

  Args:
    path: where the PNG goes.
    config: the pretraining's config.
    images: (N, H, W, 3) uint8, some images of the set; the first one's views
      are shown, and the attention on all.
    maps: (N, rows, columns) the teacher's attention, the mean over its heads.
    pretraining: the pretraining's workdir.
    finetuning: title -> workdir of a fine-tuning.
  """
  fig = figure.Figure(figsize=(12, 9), layout="constrained")
  top, views, attention = fig.subfigures(3, height_ratios=[2, 1, 1.6])
  left, right = top.subplots(1, 2)
  draw_pretraining(left, metrics.read(pretraining))
  draw_accuracy(right, finetuning)
  draw_views(views, config, images[0])
  draw_attention(attention, images, maps)
  fig.savefig(path, dpi=100)


def draw_pretraining(axes, lines):
  """Loss by epoch, and k-NN accuracy where it was measured."""
  losses = [(x["epoch"], x["loss"]) for x in lines if "loss" in x]
  axes.plot(*zip(*losses, strict=True), color="tab:blue", lw=0.8)
  axes.set(title="Pretraining", xlabel="epoch")
  axes.set_ylabel("loss", color="tab:blue")
  knn = [(line["epoch"], line["knn"]) for line in lines if "knn" in line]
  if knn:
    twin = axes.twinx()
    twin.plot(*zip(*knn, strict=True), "o-", color="tab:orange", ms=4)
    twin.set_ylabel("k-NN top-1 of the teacher (%)", color="tab:orange")


def draw_accuracy(axes, finetuning):
  """Top-1 on the test images over the course of each fine-tuning."""
  for title, workdir in finetuning.items():
    lines = [line for line in metrics.read(workdir) if "top1" in line]
    top1 = [line["top1"] for line in lines]
    share = [line["epoch"] / lines[-1]["epoch"] for line in lines]
    axes.plot(share, top1, "o-", ms=4, label=f"{title}: {top1[-1]:.1f}")
  axes.set(title="Fine-tuning", xlabel="share of the run", ylabel="top-1 (%)")
  below = (0.5, -0.16)
  axes.legend(loc="upper center", bbox_to_anchor=below, ncols=2, fontsize=8)
  axes.grid(alpha=0.3)


def draw_views(fig, config, image):
  """An image beside its views, and what is left of them to be seen."""
  key = jax.random.key(config.seed)
  # In [0, 1] as they are where mean is 0 and std 1.
  groups = multi_crop.multi_crop(
    key, image[None], config.views, (0.0,) * 3, (1.0,) * 3
  )
  shown = [("the image", image / 255)]
  for name, group in zip(("global", "local"), groups, strict=True):
    shown += [(name, np.clip(view[0], 0, 1)) for view in group]
  if config.get("objective") == "patches":
    for i, (_, view) in enumerate(shown[1:3]):  # of the global ones
      hidden_key = jax.random.fold_in(key, i)
      hidden = hide_patches(hidden_key, view, config.model.patch_size)
      shown.append(("seen of it", hidden))
  fig.suptitle("Views of one image")
  all_axes = fig.subplots(1, len(shown))
  for axes, (title, view) in zip(all_axes, shown, strict=True):
    axes.imshow(view)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def hide_patches(key, view, patch_size):
  """A view (S, S, 3) in [0, 1], grey where pretraining does not see it."""
  side = len(view) // patch_size
  seen = np.zeros(side**2)
  seen[models.draw_kept(key, (), side**2)] = 1
  square = np.ones((patch_size, patch_size))
  seen = np.kron(seen.reshape(side, side), square)[..., None]
  return seen * view + (1 - seen) * 0.5


def contact_sheet(path, config, rows):
  """Draws images by class, and the views that pretraining makes of one.

  Args:
    path: where the PNG goes.
    config: the pretraining's config, whose mean and std may be missing.
    rows: (class, images (N, H, W, 3) uint8) pairs.
  """
  most = max(len(images) for _, images in rows)
  fig = figure.Figure(figsize=(most + 2, len(rows) + 2), layout="constrained")
  above, below = fig.subfigures(2, height_ratios=[len(rows), 1.6])
  grid = above.subplots(len(rows), most, squeeze=False)
  for axes, (name, images) in zip(grid, rows, strict=True):
    for axis in axes:
      axis.set_axis_off()
    for axis, image in zip(axes, images, strict=False):
      axis.imshow(image)
    axes[0].set_title(name, fontsize=9, loc="left")
  draw_views(below, config, next(x[0] for _, x in rows if len(x)))
  fig.savefig(path, dpi=90)


def draw_attention(fig, images, maps):
  """Images above where the last block looks in them."""
  fig.suptitle("Where the teacher looks (last block, all heads)")
  columns = fig.subplots(2, len(images), squeeze=False).T
  side = images.shape[1]
  extent = (-0.5, side - 0.5, side - 0.5, -0.5)
  for (above, below), image, attention in zip(
    columns, images, maps, strict=True
  ):
    above.imshow(image)
    below.imshow(image.mean(-1), cmap="gray")
    overlay = {"alpha": 0.6, "interpolation": "bilinear", "extent": extent}
    below.imshow(attention, cmap="inferno", **overlay)
    above.set_axis_off()
    below.set_axis_off()
