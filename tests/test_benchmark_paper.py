"""What steps take on many chips, on paper, against the programs themselves."""

import pathlib

import jax
import pytest

from vit_ssl_jax.benchmark import chips, hlo, inspection, paper, steps
from vit_ssl_jax.parallel import mesh as sharding

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "scaling.md"
COUNTS = [8, 64, 512]


def test_all_reduce_by_hand():
  flat, deep = chips.V5E, chips.V5P
  # 2 · 2 · 2 chips: lines of two; 4 · 4 · 4: rings, which send both ways.
  seconds = 2 * (7 / 8 * 1e6 / (3 * 9e10) + 3e-6)
  assert deep.all_reduce_seconds(1e6, 8) == pytest.approx(seconds)
  seconds = 2 * (63 / 64 * 1e6 / (6 * 9e10) + 2 * 6e-6)
  assert deep.all_reduce_seconds(1e6, 64, 2) == pytest.approx(seconds)
  # Two slices of 16 · 16, and between them the data-centre network.
  seconds = 255 / 256 * 1e6 / (4 * 4.5e10) + 16e-6 + 1e6 / 256 / 2 / 3.125e9
  assert flat.scatter_seconds(1e6, 512) == pytest.approx(seconds)


@pytest.mark.parametrize(
  "arch", ["vit", "cait", pytest.param("swin", marks=pytest.mark.long)]
)
def test_the_documents_tables(arch):
  found = [paper.count(arch, stage) for stage in paper.RECIPES]
  text = DOCS.read_text()
  for title, table in paper.tables(found, COUNTS):
    heading = f"**{title}**\n\n"
    assert heading in text
    written = text.split(heading)[1].split("\n\n")[0]
    assert set(table.splitlines()) <= set(written.splitlines())


def collectives(config, fsdp):
  """Bytes by kind that a compiled step of a config moves, and its state."""
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3)
  mesh = sharding.make_mesh(fsdp, config.batch_size)
  init, step = steps.stage(config, augmented=True, mesh=mesh)
  shape = jax.eval_shape(init)
  places = sharding.state_sharding(mesh, shape)
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shape,
    places,
  )
  batch = steps.batch_shapes(config, sharding.batch_sharding(mesh))
  jitted = jax.jit(step, out_shardings=(places, None))
  program = hlo.Program(jitted.lower(state, batch).compile().as_text())
  return inspection.figures(program)["collective_bytes"], shape


def assert_reduced(config, found, state):
  """Asserts that ViT's step reduces its gradients, and little else."""
  first = config.stage == "pretrain"
  params = state.student["backbone"] if first else state.params
  # Patches and positions of either size of view are reduced by themselves, and
  # the first position's gradient, which is the class token's, only once.
  twice = paper.size([params["patch_embed"], params["pos_embed"]])
  once = paper.size(params["cls_token"])
  # Norms in blocks get theirs from the kernels' that they are multiplied into.
  norms = paper.size([params["blocks"]["norm1"], params["blocks"]["norm2"]])
  expected = paper.count_step(config).reduced_size
  least = expected - once - norms
  assert least <= found["all-reduce"] <= expected + twice + once


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_program_reduces_what_the_paper_says(stage, make_tiny):
  config = make_tiny(stage, "vit")
  found, shape = collectives(config, fsdp=1)
  assert_reduced(config, found, shape)
  if stage == "pretrain":  # mixing takes partners from the whole batch
    assert found.keys() == {"all-reduce"}


def test_split_parameters_are_gathered(make_tiny, monkeypatch):
  """And no tokens are moved."""
  monkeypatch.setattr(sharding, "SMALLEST", 1)
  config = make_tiny("pretrain", "vit")
  found, shape = collectives(config, fsdp=2)
  all_split = paper.size([shape.student, shape.teacher, shape.center])
  assert 0.8 * all_split < found["all-gather"] <= all_split
  assert_reduced(config, found, shape)
  assert found.keys() == {"all-gather", "all-reduce"}
