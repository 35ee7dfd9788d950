"""Reads a compiled program's text: what it does, how often, and from where.

The text is that of `compiled.as_text()`, in XLA's HLO notation. What stands in
a loop counts as often as the loop runs, where XLA knows that; of a conditional
every branch counts.
"""

import collections
import dataclasses
import functools
import math
import re

# What computes and moves nothing, or is a name for what other lines do.
FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast",
  "after-all", "partition-id", "replica-id", "opt-barrier",
  "optimization-barrier",
}  # fmt: skip
CONTROL = {"while", "call", "conditional"}
COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all",
  "collective-permute", "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
# Instructions that only put elements elsewhere.
MOVES = {"copy", "transpose", "copy-start"}
SIZES = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}

INSTRUCTION = re.compile(
  r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$"
)
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+[a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of a program.

  Attributes:
    name: unique in the program.
    opcode: such as dot, fusion or all-reduce-start.
    shape: of its result, as text.
    rest: operands and attributes, as text.
    frames: the places in the source that it comes from, innermost first, each
      "file:function".
  """

  name: str
  opcode: str
  shape: str
  rest: str
  frames: tuple[str, ...]

  @functools.cached_property
  def op_name(self):
    """The path of names that JAX gave it, or ""."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  def called(self, attribute):
    """Names of the computations that an attribute such as `calls` names."""
    found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.rest)
    return re.findall(r"[\w.\-]+", found[1]) if found else []


class Program:
  """A compiled program.

  Attributes:
    computations: name -> its instructions.
    entry: the name of the first computation.
  """

  def __init__(self, text):
    frames = source_frames(text)
    self.computations, self.entry = {}, ""
    lines = []
    for line in text.splitlines():
      if header := HEADER.match(line):
        lines = self.computations.setdefault(header[2], [])
        if header[1]:
          self.entry = header[2]
      elif found := INSTRUCTION.match(line):
        name, shape, opcode, rest = found.groups()
        frame = re.search(r"stack_frame_id=(\d+)", rest)
        where = frames(frame[1]) if frame else ()
        lines.append(Instruction(name, opcode, shape, rest, where))

  @functools.cached_property
  def instructions(self):
    """Name -> instruction, of all computations."""
    every = self.computations.values()
    return {x.name: x for lines in every for x in lines}

  def operands(self, instruction):
    """The instructions whose results one works on."""
    listed = instruction.rest.split("), ")[0]
    names = re.findall(r"%([\w.\-]+)", listed)
    return [self.instructions[x] for x in names if x in self.instructions]

  def fused(self, instruction):
    """The instructions that a fusion consists of."""
    return [
      inner
      for name in instruction.called("calls")
      for inner in self.computations.get(name, [])
    ]

  @functools.cached_property
  def executed(self):
    """(instruction, how often a run of the program does it) of all it does.

    Loops, calls and conditionals are left out: what they do is there.
    """
    times = collections.Counter()
    waiting = [(self.entry, 1)]
    while waiting:
      name, count = waiting.pop()
      times[name] += count
      for x in self.computations.get(name, []):
        if x.opcode == "while":
          turns = trip_count(x)
          waiting += [(body, count * turns) for body in x.called("body")]
        elif x.opcode == "call":
          waiting += [(inner, count) for inner in x.called("to_apply")]
        elif x.opcode == "conditional":
          branches = x.called("branch_computations")
          branches += x.called("true_computation")
          branches += x.called("false_computation")
          waiting += [(branch, count) for branch in branches]
    skipped = FREE | CONTROL
    return [
      (x, count)
      for name, count in times.items()
      for x in self.computations.get(name, [])
      if x.opcode not in skipped and not x.opcode.endswith("-done")
    ]

  def kind(self, x):
    """What an instruction is, in words: matrix product, copy, collective, …"""
    opcode = x.opcode.removesuffix("-start")
    inner = {y.opcode for y in self.fused(x)} - FREE
    if opcode in COLLECTIVES:
      return "collective"
    if x.opcode == "custom-call":
      target = custom_call_target(x)
      is_product = re.search("gemm|matmul|cublas", target, re.IGNORECASE)
      return "matrix product" if is_product else f"custom call {target}"
    if opcode in ("dot", "convolution") or inner & {"dot", "convolution"}:
      return "matrix product"
    if opcode in MOVES or (inner and inner <= MOVES):
      return "copy or transpose"
    return "elementwise or reduction"


def source_frames(text):
  """Makes a function from a stack frame's number to the frames, as text.

  The program's text lists them in four tables; where it has none, the function
  gives ().
  """
  files, functions = section(text, "FileNames"), section(text, "FunctionNames")
  places = {}
  for key, line in section(text, "FileLocations").items():
    file, function = re.findall(r"\b\w+_name_id=(\d+)", line)
    places[key] = ":".join(
      table.get(i, "").strip('"')
      for table, i in ((files, file), (functions, function))
    )
  frames = {}
  for key, line in section(text, "StackFrames").items():
    place = re.search(r"file_location_id=(\d+)", line)[1]
    parent = re.search(r"parent_frame_id=(\d+)", line)
    frames[key] = place, int(parent[1]) if parent else 0
  # XLA prints a parent's number plus one; the first frame has no parent.
  offset = frames.get("1", ("", 0))[1]

  @functools.cache
  def chain(key):
    found = []
    while key in frames and len(found) < len(frames):
      place, parent = frames[key]
      found.append(places.get(place, ""))
      key = str(parent - offset)
    return tuple(found)

  return chain


def section(text, title):
  """A table of the text's head, such as FileNames: number -> line."""
  found = re.search(rf"^{title}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
  lines = found[1].splitlines() if found else []
  return dict(line.split(" ", 1) for line in lines)


def trip_count(loop):
  """How often a loop runs, or 1 where XLA does not know."""
  found = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
  return int(found[1]) if found else 1


def custom_call_target(x):
  return re.search(r'custom_call_target="([^"]*)"', x.rest)[1]


def arrays(shape):
  """(type, elements) of each array in a shape's text."""
  for kind, sides in ARRAY.findall(shape):
    yield kind, math.prod(int(n) for n in sides.split(",") if n)


def size_in_bytes(shape):
  return sum(n * item_size(kind) for kind, n in arrays(shape))


def item_size(kind):
  bits = re.search(r"\d+", kind)
  return SIZES.get(kind) or (max(1, int(bits[0]) // 8) if bits else 1)
