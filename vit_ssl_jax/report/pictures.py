"""Pictures of a run: curves, views of an image, attention maps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import figure

from vit_ssl_jax import models
from vit_ssl_jax.augment import multi_crop as views
from vit_ssl_jax.run import metrics


def summary(path, config, params, images, pretraining, finetuning):
  """Draws one picture of a pretraining and the fine-tunings that follow.

  Args:
    path: where the PNG goes.
    config: the pretraining's config.
    params: the teacher's backbone.
    images: (N, H, W, 3) uint8, some images of the set; the first one's views
      are shown, and the attention on all.
    pretraining: the pretraining's workdir.
    finetuning: title -> workdir of a fine-tuning.
  """
  fig = figure.Figure(figsize=(12, 9), layout="constrained")
  top, views_row, attention_row = fig.subfigures(3, height_ratios=[2, 1, 1.6])
  left, right = top.subplots(1, 2)
  draw_pretraining(left, metrics.read(pretraining))
  draw_accuracy(right, finetuning)
  draw_views(views_row, config, images[0])
  draw_attention(attention_row, config, params, images)
  fig.savefig(path, dpi=100)


def draw_pretraining(axes, lines):
  """Loss by epoch, and nearest neighbours' accuracy where it was measured."""
  epochs = [line["epoch"] for line in lines]
  axes.plot(epochs, [line["loss"] for line in lines], color="tab:blue", lw=0.8)
  axes.set(title="Pretraining", xlabel="epoch")
  axes.set_ylabel("loss (nats)", color="tab:blue")
  knn = [(line["epoch"], line["knn"]) for line in lines if "knn" in line]
  if knn:
    twin = axes.twinx()
    twin.plot(*zip(*knn, strict=True), "o-", color="tab:orange", ms=4)
    twin.set_ylabel("k-NN top-1 of the teacher (%)", color="tab:orange")


def draw_accuracy(axes, finetuning):
  """Top-1 on the test images over the course of each fine-tuning."""
  for title, workdir in finetuning.items():
    lines = metrics.read(workdir)
    end = lines[-1]["epoch"]
    points = [(x["epoch"] / end, x["top1"]) for x in lines if "top1" in x]
    axes.plot(
      *zip(*points, strict=True),
      "o-",
      ms=4,
      label=f"{title}: {points[-1][1]:.1f}",
    )
  axes.set(title="Fine-tuning", xlabel="share of the run", ylabel="top-1 (%)")
  axes.legend()
  axes.grid(alpha=0.3)


def draw_views(fig, config, image):
  """An image beside the views that student and teacher see of it."""
  groups = views.multi_crop(
    jax.random.key(config.seed),
    image[None],
    config.views,
    config.mean,
    config.std,
  )
  shown = [("the image", image / 255)]
  for name, group in zip(("global", "local"), groups, strict=True):
    shown += [(name, restored(view[0], config)) for view in group]
  fig.suptitle("Views of one image")
  for axes, (title, view) in zip(
    fig.subplots(1, len(shown)), shown, strict=True
  ):
    axes.imshow(np.clip(view, 0, 1))
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def restored(image, config):
  """A normalised image (H, W, 3) back in [0, 1]."""
  return np.asarray(image) * np.array(config.std) + np.array(config.mean)


def draw_attention(fig, config, params, images):
  """Images above where the last block looks in them."""
  maps = attention_maps(config, params, images)
  who = "all patches" if config.model.name == "swin" else "class token"
  fig.suptitle(f"Where the teacher looks ({who}, last block, all heads)")
  for column, image, attention in zip(
    fig.subplots(2, len(images), squeeze=False).T, images, maps, strict=True
  ):
    column[0].imshow(image)
    column[1].imshow(image.mean(-1), cmap="gray")
    side = image.shape[0]
    column[1].imshow(
      attention,
      cmap="inferno",
      alpha=0.6,
      interpolation="bilinear",
      extent=(-0.5, side - 0.5, side - 0.5, -0.5),
    )
    for axes in column:
      axes.set_axis_off()


def attention_maps(config, params, images):
  """The last block's attention to the patches, the mean over the heads.

  It is the class token's, or where there is none the mean over all patches.

  Args:
    config: the run's config.
    params: the backbone's parameters.
    images: (B, H, W, 3) uint8.

  Returns:
    (B, rows, columns) float32, which sums to 1 together with what the class
    token keeps for itself.
  """
  model = models.from_config(config, num_classes=0)
  x = views.evaluation_view(jnp.asarray(images), config.mean, config.std)
  apply = functools.partial(model.apply, method="attention")
  attention = np.asarray(jax.jit(apply)({"params": params}, x)).mean(1)
  if config.model.name == "swin":
    maps = attention.mean(1)
  else:
    maps = attention[:, 0, 1:]
  return maps.reshape(len(images), math.isqrt(maps.shape[1]), -1)
