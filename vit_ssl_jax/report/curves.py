"""Curves of runs, in the colors of a page."""

import matplotlib as mpl
from matplotlib import figure

from vit_ssl_jax.report import page, seeds

# Of the lines of metrics, with the axis's label.
KINDS = {
  "loss": "loss",
  "learning_rate": "learning rate",
  "teacher_entropy": "entropy of the teacher (nats)",
  "knn": "k-NN top-1 (%)",
  "top1": "top-1 (%)",
}
MOST = 1000  # points of a curve


def draw(runs):
  """Draws each kind of value that the runs have.

  Args:
    runs: title -> lines of metrics.

  Returns:
    A list of matplotlib figures.
  """
  found = []
  for kind, label in KINDS.items():
    curves = {
      title: [(x["epoch"], x[kind]) for x in lines if kind in x]
      for title, lines in runs.items()
    }
    if not any(curves.values()):
      continue
    with mpl.rc_context(page.STYLE):
      height = 2.8 + 0.12 * len(curves)
      fig = figure.Figure(figsize=(4.4, height), layout="constrained")
      axis = fig.subplots()
      for title, points in curves.items():
        some = points[:: max(1, len(points) // MOST)]
        if some:
          style = "o-" if len(some) < 50 else "-"
          axis.plot(*zip(*some, strict=True), style, ms=3, lw=1, label=title)
      axis.set(xlabel="epoch", ylabel=label)
      axis.grid(alpha=0.2)
      columns = 1 if any(len(title) > 24 for title in curves) else 2
      fig.legend(loc="outside lower center", ncols=columns, fontsize=8)
    found.append(fig)
  return found


def bars(groups):
  """Draws means with their 95 % intervals, and every seed as a point.

  Args:
    groups: title -> figures in percent.
  """
  with mpl.rc_context(page.STYLE):
    height = 0.7 + 0.65 * len(groups)
    fig = figure.Figure(figsize=(4.4, height), layout="constrained")
    axis = fig.subplots()
    ends = [1.0]
    for at, (title, found) in enumerate(reversed(groups.items())):
      mean = sum(found) / len(found)
      axis.barh(at, mean, 0.4, color="tab:blue", alpha=0.6)
      low, high = seeds.interval(found) or (mean, mean)
      if high > low:
        error = [[mean - low], [high - mean]]
        axis.errorbar(mean, at, xerr=error, color=page.TEXT, capsize=4, lw=1)
      axis.plot(found, [at] * len(found), "o", color="tab:orange", ms=4)
      across = {"transform": axis.get_yaxis_transform(), "fontsize": 9}
      axis.text(0.01, at + 0.25, title, va="bottom", **across)
      axis.text(1.01, at, f"{mean:.2f}", va="center", **across)
      ends += [high, *found]
    axis.set(xlabel="top-1 (%)", xlim=(0, min(100, 1.05 * max(ends))))
    axis.set(yticks=[], ylim=(-0.35, len(groups) - 0.3))
    axis.spines[["top", "right"]].set_visible(False)
  return fig


def confusion(matrix, classes):
  """Draws a confusion matrix, rows in percent of the class's images."""
  shares = [[100 * x / max(sum(row), 1) for x in row] for row in matrix]
  side = max(4, min(12, 0.35 * len(classes) + 2))
  fig = figure.Figure(figsize=(side, side), layout="constrained")
  axis = fig.subplots()
  axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
  if len(classes) <= 30:
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    for i, row in enumerate(shares):
      for j, x in enumerate(row):
        if x >= 1:
          color = "white" if x > 60 else "black"
          axis.text(
            *(j, i, f"{x:.0f}"), ha="center", va="center", fontsize=7,
            color=color,
          )  # fmt: skip
  axis.set(xlabel="taken for", ylabel="class")
  return fig


def mistakes(images, labels, guesses, confidence, classes):
  """Draws images beside what they were taken for.

  Args:
    images: (N, S, S, 3) uint8.
    labels, guesses: (N,) integers.
    confidence: (N,) in [0, 1].
    classes: names.
  """
  columns = 6
  rows = -(-len(images) // columns)
  fig = figure.Figure(figsize=(10, 2 * rows), layout="constrained")
  axes = fig.subplots(rows, columns, squeeze=False).ravel()
  for axis in axes:
    axis.set_axis_off()
  for axis, image, label, guess, share in zip(
    axes, images, labels, guesses, confidence, strict=False
  ):
    axis.imshow(image)
    axis.set_title(
      f"{classes[label]}\nas {classes[guess]} ({share:.0%})", fontsize=8
    )
  return fig
