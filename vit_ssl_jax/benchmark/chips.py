"""TPU chips as their maker publishes them, and how long their collectives take.

Peaks, memory bandwidths, sizes and shapes of slices are those of Google's pages
on each chip (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e). Bandwidths of links
and of the data-centre network, what wraps around, and a hop's microsecond are
those of "How to Scale Your Model" (Austin et al., 2025,
jax-ml.github.io/scaling-book, parts 2 and 3).
"""

import dataclasses
import math

from vit_ssl_jax.cli import UserError

HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of TPU.

  Attributes:
    name: as its maker calls it.
    peak: dense bfloat16 operations a second.
    memory: bytes a second to and from the chip's memory.
    link: bytes a second of a link to a neighbour, in one direction.
    ring: an axis whose length is a multiple of this is a ring, others lines.
    network: bytes a second of the data-centre network, of a chip's share.
    shapes: of the slices, by their number of chips; more chips than the
      largest has are several slices, over the data-centre network.
  """

  name: str
  peak: float
  memory: float
  link: float
  ring: int
  network: float
  shapes: dict[int, tuple[int, ...]]

  def slices(self, chips):
    """How many slices so many chips are, and the shape of one.

    Raises:
      UserError: there are no such slices.
    """
    largest = max(self.shapes)
    count, rest = divmod(chips, largest)
    if chips in self.shapes:
      return 1, self.shapes[chips]
    if count and not rest:
      return count, self.shapes[largest]
    known = ", ".join(map(str, self.shapes))
    raise UserError(
      f"--chips={chips}: a slice of {self.name} has {known} chips, more are"
      f" multiples of {largest}"
    )

  def bandwidth(self, shape):
    """Bytes a second that a chip can send, over all axes of its slice.

    In a ring it sends both ways, in a line what counts is its one busiest
    link.
    """
    return sum(
      self.link * (2 if is_ring(self, side) else 1)
      for side in shape
      if side > 1
    )

  def scatter_seconds(self, size, chips, messages=1):
    """How long a reduce-scatter of arrays takes, or an all-gather.

    All axes carry their share at once. Every message has to travel over the
    longest way in its slice, hop by hop.

    Args:
      size: bytes of all arrays, whole.
      chips: over how many they are split.
      messages: how many of them are sent one after the other.
    """
    count, shape = self.slices(chips)
    inside = math.prod(shape)
    hops = sum(n // 2 if is_ring(self, n) else n - 1 for n in shape)
    seconds = size * (1 - 1 / inside) / self.bandwidth(shape)
    between = size / inside * (1 - 1 / count) / self.network
    return seconds + messages * hops * HOP_SECONDS + between

  def all_reduce_seconds(self, size, chips, messages=1):
    """As `scatter_seconds`, of a reduce-scatter and then an all-gather."""
    return 2 * self.scatter_seconds(size, chips, messages)


def is_ring(chip, side):
  return side % chip.ring == 0


def sent(size, chips):
  """Bytes that a chip sends in a reduce-scatter or all-gather of an array."""
  return size * (1 - 1 / chips)


FLAT = {
  1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8),
  128: (8, 16), 256: (16, 16),
}  # fmt: skip
DEEP = {
  4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4),
  128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8),
}  # fmt: skip
V5E = Chip("v5e", 197e12, 819e9, 4.5e10, 16, 3.125e9, FLAT)
V6E = Chip("v6e", 918e12, 1638e9, 9e10, 16, 12.5e9, FLAT)
V5P = Chip("v5p", 459e12, 2765e9, 9e10, 4, 6.25e9, DEEP)
CHIPS = (V5E, V6E, V5P)
