"""Tables and pictures."""

import jax
import numpy as np
import pytest
from PIL import Image

from vit_ssl_jax import cli, files, models
from vit_ssl_jax.report import pictures


def test_table_lines_up():
  text = cli.table(("labels", "top-1"), [("all", 98.125), ("10%", None)])
  assert text.splitlines() == [
    "labels  top-1",
    "------  -----",
    "all     98.12",
    "10%         -",
  ]


@pytest.mark.parametrize("arch", ["vit", "swin", "cait"])
def test_attention_maps_share_out_what_there_is(arch, make_tiny):
  model = models.from_config(make_tiny("pretrain", arch), 0)
  params = models.init(model, jax.random.key(0))
  images = np.random.default_rng(0).normal(size=(3, 8, 8, 3))
  weights = model.apply({"params": params}, images, method="attention")
  maps = models.attention_maps(weights).mean(1)
  assert maps.shape == (3, 2, 2)
  assert (maps > 0).all()
  if arch == "swin":
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
  else:  # the class token keeps some for itself
    assert (maps.sum((1, 2)) < 1).all()


def test_summary_is_a_picture(pretrain_tiny, tmp_path):
  for name, value in (("pretrain", "knn"), ("tune", "top1")):
    (tmp_path / name).mkdir()
    lines = [
      f'{{"step": {i}, "epoch": {i}, "loss": 1.5, "{value}": 50, "seconds": 1}}'
      for i in (1, 2)
    ]
    files.write(tmp_path / name / "metrics.jsonl", "\n".join(lines) + "\n")
  images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)
  pictures.summary(
    tmp_path / "summary.png",
    pretrain_tiny,
    images,
    np.ones((3, 2, 2)) / 4,
    tmp_path / "pretrain",
    {"from scratch": tmp_path / "tune"},
  )
  picture = Image.open(tmp_path / "summary.png")
  assert picture.size == (1200, 900)
  assert len(picture.getcolors(1_000_000)) > 50


def test_contact_sheet_of_a_class_without_images(pretrain_tiny, tmp_path):
  images = np.zeros((2, 8, 8, 3), np.uint8)
  rows = [("none", images[:0]), ("some", images)]
  pictures.contact_sheet(tmp_path / "sheet.png", pretrain_tiny, rows)
  assert (tmp_path / "sheet.png").stat().st_size > 1000
