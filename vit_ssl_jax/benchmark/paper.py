"""What a step takes on many TPU chips, on paper: bytes, and the time for them.

Everything is computed from the programs of the steps (parameters, matrix
products) and from what the chips' maker publishes (`chips`). Nothing here is
measured.
"""

import dataclasses
import math

import jax

from configs import finetune as finetune_recipe, pretrain as pretrain_recipe
from vit_ssl_jax.benchmark import chips, steps
from vit_ssl_jax.benchmark.counting import backward_turns, products

RECIPES = {"pretrain": pretrain_recipe, "finetune": finetune_recipe}
ARCHITECTURES = ("vit", "swin", "cait")
STEP_HEADER = (
  "", "parameters, M", "gradients, MB", "state, MB", "GFLOP an image",
  "MB an image", "FLOP a byte",
)  # fmt: skip
IMAGES = 64  # on a chip, for which bytes are counted


@dataclasses.dataclass(frozen=True)
class Step:
  """What a step takes, without augmentation.

  Attributes:
    arch, stage: of which model and stage.
    gradients: bytes of the gradients, float32, as many as of the parameters
      that are trained.
    teacher: bytes of the teacher's parameters, 0 in fine-tuning.
    state: bytes of the whole state.
    flops: operations of the matrix products for an image.
    moved: bytes that these read and write for an image, in bfloat16.
    backward_flops, backward_moved: of these, the backward pass's.
    logits: elements of the teacher's outputs' mean, which is reduced too.
    messages: in how many parts the gradients are reduced: one for each turn of
      a loop, and one for all else.
  """

  arch: str
  stage: str
  gradients: int
  teacher: int
  state: int
  flops: float
  moved: float
  backward_flops: float
  backward_moved: float
  logits: int
  messages: int

  def seconds(self, chip, backward=False):
    """The least time that an image takes on a chip, in seconds.

    Matrix products can be no faster than the chip's peak, nor than their
    operands come from its memory and their results go there.
    """
    flops = self.backward_flops if backward else self.flops
    moved = self.backward_moved if backward else self.moved
    return max(flops / chip.peak, moved / chip.memory)

  @property
  def reduced_size(self):
    """Bytes that are reduced over all chips: gradients, loss, mean output."""
    return self.gradients + 4 * (self.logits + 1)

  @property
  def sharded_size(self):
    """Bytes that are gathered or scattered where chips share the parameters.

    Student and teacher are gathered once and kept for the backward pass;
    gradients are reduced and scattered.
    """
    return self.gradients + self.teacher + self.reduced_size

  def reduce_seconds(self, chip, count):
    """How long `count` chips take to reduce."""
    return chip.all_reduce_seconds(self.reduced_size, count, self.messages)

  def sharded_seconds(self, chip, count):
    """How long `count` chips take to gather and scatter."""
    messages = self.messages + 1 + bool(self.teacher)
    return chip.scatter_seconds(self.sharded_size, count, messages)


def count(arch, stage, dataset="cifar10"):
  """Counts what a step of a recipe takes; see `count_step`."""
  config = RECIPES[stage].get_config(f"{arch},{dataset}")
  config.update(mean=(0.5,) * 3, std=(0.25,) * 3, dtype="bfloat16")
  config.batch_size = IMAGES
  return count_step(config)


def count_step(config):
  """Counts what a step takes, in its own program, which is not compiled.

  Args:
    config: of either stage, with mean and std.

  Returns:
    A `Step`.
  """
  init, step = steps.stage(config, augmented=False)
  state = jax.eval_shape(init)
  program = jax.jit(step).trace(state, steps.batch_shapes(config)).jaxpr.jaxpr
  total, backward = [0, 0], [0, 0]
  for flops, moved, path in products(program):
    for sums in (total, backward) if "transpose" in path else (total,):
      sums[0] += flops / config.batch_size
      sums[1] += moved / config.batch_size
  pretraining = config.stage == "pretrain"
  trained = state.student if pretraining else state.params
  return Step(
    arch=config.model.name,
    stage=config.stage,
    gradients=size(trained),
    teacher=size(state.teacher) if pretraining else 0,
    state=size(state),
    flops=total[0],
    moved=total[1],
    backward_flops=backward[0],
    backward_moved=backward[1],
    logits=config.head.out_dim if pretraining else 0,
    messages=1 + backward_turns(program),
  )


def size(tree):
  """Bytes of a pytree of arrays."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def hides_from(step, chip, reduce_seconds):
  """The least batch of a chip whose backward pass takes as long as that."""
  return math.ceil(reduce_seconds / step.seconds(chip, backward=True))


def step_rows(found):
  """Rows of what a step takes, for a table."""
  return [
    (
      f"{s.arch}, {s.stage}",
      mega(s.gradients / 4),
      mega(s.gradients),
      mega(s.state),
      f"{s.flops / 1e9:.2f}",
      mega(s.moved),
      f"{s.flops / s.moved:.0f}",
    )
    for s in found
  ]


def chip_rows(found, chip, counts):
  """Rows of what a step takes on a kind of chip, for a table."""
  rows = []
  for s in found:
    row = [f"{s.arch}, {s.stage}", f"{1e6 * s.seconds(chip):.1f}"]
    row.append(f"{100 * s.flops / chip.peak / s.seconds(chip):.0f}")
    for n in counts:
      seconds = s.reduce_seconds(chip, n)
      row += [f"{1e6 * seconds:.0f}", str(hides_from(s, chip, seconds))]
    rows.append(row)
  return rows


def sharded_rows(found, chip, counts):
  """As `chip_rows`, where all chips share the parameters."""
  rows = []
  for s in found:
    row = [f"{s.arch}, {s.stage}"]
    for n in counts:
      seconds = s.sharded_seconds(chip, n)
      row += [f"{1e6 * seconds:.0f}", str(hides_from(s, chip, seconds))]
    rows.append(row)
  return rows


def byte_rows(found, counts):
  """Rows of the bytes that a chip sends in a step, for a table."""
  return [
    [f"{s.arch}, {s.stage}"]
    + [mega(2 * chips.sent(s.reduced_size, n)) for n in counts]
    + [mega(chips.sent(s.sharded_size, n)) for n in counts]
    + [mega(s.state / n) for n in counts]
    for s in found
  ]


def mega(x):
  return f"{x / 1e6:.2f}"


def markdown(header, rows):
  """A table in Markdown."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(found, counts):
  """(title, table in Markdown) of all that is computed.

  Args:
    found: a list of `Step`.
    counts: numbers of chips.

  Raises:
    UserError: there is no slice of so many chips.
  """
  yield (
    "A step",
    markdown(
      STEP_HEADER,
      step_rows(found),
    ),
  )
  each = [f"{what}, {n}" for what in ("all-reduce", "sharded", "state")
          for n in counts]  # fmt: skip
  yield (
    "Bytes that a chip sends in a step, and keeps, MB",
    markdown(["", *each], byte_rows(found, counts)),
  )
  both = [x for n in counts for x in (f"{n} chips, µs", "hides from")]
  for chip in chips.CHIPS:
    shapes = "; ".join(place(chip, n) for n in counts)
    yield (
      f"{chip.name}, replicated: {shapes}",
      markdown(
        ["", "µs an image", "share of peak, %", *both],
        chip_rows(found, chip, counts),
      ),
    )
    yield (
      f"{chip.name}, sharded over all chips",
      markdown(["", *both], sharded_rows(found, chip, counts)),
    )


def place(chip, count):
  """The slices of so many chips in words."""
  slices, shape = chip.slices(count)
  text = " by ".join(map(str, shape))
  return f"{count} chips are {text}" + (
    f", {slices} slices" if slices > 1 else ""
  )
