"""Figures of runs: curves, accuracy, views, confusion matrix, mistakes."""

import functools

import jax
import numpy as np
from matplotlib.figure import Figure

from vit_ssl_jax.augment import pipelines
from vit_ssl_jax.evaluate import pictures
from vit_ssl_jax.models import mae
from vit_ssl_jax.report import page, seeds
from vit_ssl_jax.run import metrics

# Metric -> label of its axis.
CURVES = {
  "loss": "loss",
  "learning_rate": "learning rate",
  "teacher_entropy": "entropy of the teacher (nats)",
  "knn": "k-NN top-1 (%)",
  "top1": "top-1 (%)",
}
MAX_POINTS = 1000  # of a curve
MAX_TICKS = 30  # classes that a confusion matrix names


def draw_curves(runs):
  """Draws each metric of `CURVES` of runs, title -> lines of metrics.jsonl."""
  figures = []
  for metric, label in CURVES.items():
    curves = {
      title: [(x["epoch"], x[metric]) for x in lines if metric in x]
      for title, lines in runs.items()
    }
    if any(curves.values()):
      figures.append(draw_curve(curves, label))
  return figures


def draw_curve(curves, label):
  """Draws title -> (epoch, value) pairs over the epochs."""
  height = 2.8 + 0.12 * len(curves)
  fig = Figure(figsize=(4.4, height), layout="constrained")
  axis = fig.subplots()
  for title, points in curves.items():
    points = points[:: max(1, len(points) // MAX_POINTS)]
    if points:
      style = "o-" if len(points) < 50 else "-"
      axis.plot(*zip(*points, strict=True), style, ms=3, lw=1, label=title)
  axis.set(xlabel="epoch", ylabel=label)
  axis.grid(alpha=0.2)
  columns = 1 if any(len(title) > 24 for title in curves) else 2
  fig.legend(loc="outside lower center", ncols=columns, fontsize=8)
  return fig


def draw_bars(accuracies):
  """Draws title -> top-1 of each seed: means, 95 % intervals, points."""
  height = 0.7 + 0.65 * len(accuracies)
  fig = Figure(figsize=(4.4, height), layout="constrained")
  axis = fig.subplots()
  ends = [1.0]
  for y, (title, top1) in enumerate(reversed(accuracies.items())):
    mean = np.mean(top1)
    axis.barh(y, mean, 0.4, color="tab:blue", alpha=0.6)
    low, high = seeds.interval(top1) or (mean, mean)
    if high > low:
      error = [[mean - low], [high - mean]]
      axis.errorbar(mean, y, xerr=error, color=page.TEXT, capsize=4, lw=1)
    axis.plot(top1, [y] * len(top1), "o", color="tab:orange", ms=4)
    across = {"transform": axis.get_yaxis_transform(), "fontsize": 9}
    axis.text(0.01, y + 0.25, title, va="bottom", **across)
    axis.text(1.01, y, f"{mean:.2f}", va="center", **across)
    ends += [high, *top1]
  axis.set(xlabel="top-1 (%)", xlim=(0, min(100, 1.05 * max(ends))))
  axis.set(yticks=[], ylim=(-0.35, len(accuracies) - 0.3))
  axis.spines[["top", "right"]].set_visible(False)
  return fig


def draw_confusion(matrix, classes):
  """Draws a confusion matrix, each row in percent of its sum."""
  percent = [[100 * x / max(sum(row), 1) for x in row] for row in matrix]
  side = max(4, min(12, 0.35 * len(classes) + 2))
  fig = Figure(figsize=(side, side), layout="constrained")
  axis = fig.subplots()
  axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
  axis.set(xlabel="predicted class", ylabel="class")
  if len(classes) > MAX_TICKS:
    return fig
  axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
  axis.set_yticks(range(len(classes)), classes, fontsize=8)
  for (i, j), x in np.ndenumerate(percent):
    if x >= 1:
      color = "white" if x > 60 else "black"
      center = {"ha": "center", "va": "center"}
      axis.text(j, i, f"{x:.0f}", fontsize=7, color=color, **center)
  return fig


def draw_mistakes(images, labels, predictions, confidence, classes):
  """Draws images (N, S, S, 3) uint8 under their class and the predicted one."""
  rows = -(-len(images) // 6)
  fig = Figure(figsize=(10, 2 * rows), layout="constrained")
  axes = pictures.blank_axes(fig, rows, 6).ravel()
  for i, image in enumerate(images):
    axes[i].imshow(image)
    predicted = f"{classes[predictions[i]]} ({confidence[i]:.0%})"
    axes[i].set_title(f"{classes[labels[i]]}\nas {predicted}", fontsize=8)
  return fig


def draw_views(fig, config, image):
  """Draws an image (S, S, 3) uint8 and the views that pretraining makes of it.

  For a masked autoencoder also the patches that its encoder sees.
  """
  key = jax.random.key(config.seed)
  # Mean 0 and standard deviation 1 leave the views in [0, 1].
  make_views = functools.partial(
    pipelines.multi_crop, views=config.views, mean=(0.0,) * 3, std=(1.0,) * 3
  )
  groups = jax.jit(make_views)(key, image[None])
  panels = [("the image", image / 255)]
  for name, group in zip(("global", "local"), groups, strict=True):
    panels += [(name, np.clip(view, 0, 1)) for view in group[0]]
  if config.objective != "views":
    for i, (_, view) in enumerate(panels[1:3]):
      mask_key = jax.random.fold_in(key, i)
      masked = mask_patches(mask_key, view, config.model.patch_size)
      panels.append(("visible patches", masked))
  fig.suptitle("Views of one image")
  axes = pictures.blank_axes(fig, 1, len(panels))[0]
  for axis, (title, view) in zip(axes, panels, strict=True):
    axis.imshow(view)
    axis.set_title(title, fontsize=9)


def mask_patches(key, view, patch_size):
  """Greys the patches of a view (S, S, 3) that a masked autoencoder hides."""
  side = len(view) // patch_size
  visible = np.zeros(side**2)
  visible[mae.random_masking(key, (), side**2)] = 1
  patch = np.ones((patch_size, patch_size))
  visible = np.kron(visible.reshape(side, side), patch)[..., None]
  return visible * view + (1 - visible) * 0.5


def draw_contact_sheet(config, rows):
  """Draws (class, images (N, H, W, 3) uint8) pairs, and views of the first."""
  columns = max(len(images) for _, images in rows)
  fig = Figure(figsize=(columns + 2, len(rows) + 2), layout="constrained")
  above, below = fig.subfigures(2, height_ratios=[len(rows), 1.6])
  axes = pictures.blank_axes(above, len(rows), columns)
  for line, (name, images) in zip(axes, rows, strict=True):
    for axis, image in zip(line, images, strict=False):
      axis.imshow(image)
    line[0].set_title(name, fontsize=9, loc="left")
  draw_views(below, config, next(x[0] for _, x in rows if len(x)))
  return fig


def draw_summary(config, images, maps, pretraining, finetunings):
  """Draws a pretraining and the fine-tunings that follow.

  Args:
    config: the pretraining's.
    images: (N, H, W, 3) uint8; the views are of the first one.
    maps: (N, rows, columns), the teacher's attention, averaged over the heads.
    pretraining: a workdir.
    finetunings: title -> workdir.
  """
  fig = Figure(figsize=(12, 9), layout="constrained")
  top, views, bottom = fig.subfigures(3, height_ratios=[2, 1, 1.6])
  left, right = top.subplots(1, 2)
  draw_pretraining(left, metrics.read(pretraining))
  draw_finetunings(right, finetunings)
  draw_views(views, config, images[0])
  bottom.suptitle("Attention of the teacher (last block, mean over the heads)")
  axes = pictures.blank_axes(bottom, 2, len(images))
  for above, below, image, attention in zip(*axes, images, maps, strict=True):
    above.imshow(image)
    below.imshow(image)
    pictures.overlay(below, attention)
  return fig


def draw_pretraining(axis, lines):
  """Draws the loss, and on a second axis k-NN accuracy, over the epochs."""
  losses = [(x["epoch"], x["loss"]) for x in lines if "loss" in x]
  axis.plot(*zip(*losses, strict=True), color="tab:blue", lw=0.8)
  axis.set(title="Pretraining", xlabel="epoch")
  axis.set_ylabel("loss", color="tab:blue")
  knn = [(x["epoch"], x["knn"]) for x in lines if "knn" in x]
  if knn:
    twin = axis.twinx()
    twin.plot(*zip(*knn, strict=True), "o-", color="tab:orange", ms=4)
    twin.set_ylabel("k-NN top-1 of the teacher (%)", color="tab:orange")


def draw_finetunings(axis, finetunings):
  """Draws test top-1 over the course of each fine-tuning."""
  for title, workdir in finetunings.items():
    lines = [x for x in metrics.read(workdir) if "top1" in x]
    top1 = [x["top1"] for x in lines]
    share = [x["epoch"] / lines[-1]["epoch"] for x in lines]
    axis.plot(share, top1, "o-", ms=4, label=f"{title}: {top1[-1]:.1f}")
  axis.set(title="Fine-tuning", xlabel="share of the run", ylabel="top-1 (%)")
  below = (0.5, -0.16)
  axis.legend(loc="upper center", bbox_to_anchor=below, ncols=2, fontsize=8)
  axis.grid(alpha=0.3)
