"""Reads what a compiled program does, and how long it is estimated to take."""

import collections
import dataclasses
import math
import re

from vit_ssl_jax.models import pallas_attention

H100_BANDWIDTH = 3.35e12  # bytes a second

# A part of the step by what is in the name of its operations, first match.
PARTS = {
  "augmentation": "augmentation",
  "update/": "update",
  "attn": "attention",
  "mlp": "MLP",
  "norm": "norms",
  "patch_embed": "patches",
  "head": "head",
}
COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all",
  "collective-permute",
)  # fmt: skip
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator's clock in Hz, FLOP/s in bfloat16, and memory in bytes."""

  clock: float | None
  peak: float
  memory: float


def tpu_figures(text, schedules, chip, flops, batch_size):
  """What a TPU's program is estimated to take.

  Args:
    text: the compiled HLO.
    schedules: the folder with the kernels' instructions.
    chip: a `Chip`.
    flops: of one chip in a step.
    batch_size: of all chips together.

  Returns:
    estimated_ms, images_per_second, share_of_peak, link_bytes, parts_ms.
  """
  kernels = kernel_cycles(schedules)
  parts, links = collections.Counter(), 0
  for line, times in operations(text):
    name = re.search(r'op_name="([^"]*)"', line)
    part = part_of(name[1] if name else "")
    cycles = re.search(r'estimated_cycles":"(\d+)"', line)
    if '"tpu_custom_call"' in line:
      parts[part] += times * kernels[shapes_of_call(line)]
    elif collective := collective_bytes(line):
      links += times * collective
      part = "collectives"
    if cycles:
      parts[part] += times * int(cycles[1])
  seconds = sum(parts.values()) / chip.clock
  return {
    "estimated_ms": 1e3 * seconds,
    "images_per_second": batch_size / seconds,
    "share_of_peak": flops / seconds / chip.peak,
    "link_bytes": round(links),
    "parts_ms": {k: 1e3 * v / chip.clock for k, v in parts.most_common()},
  }


def gpu_figures(text, batch_size):
  """What an H100's kernels read and write, and how long that takes at least."""
  parts = collections.Counter()
  links = 0
  sizes = {}
  for line, times in operations(text):
    found = re.match(
      r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z\-]+)\((.*)", line
    )
    if not found:
      continue
    name, kind, opcode, rest = found.groups()
    sizes[name] = size_of(kind)
    if opcode in (
      "parameter",
      "tuple",
      "get-tuple-element",
      "bitcast",
      "constant",
    ):
      continue
    operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
    moved = sizes[name] + sum(sizes.get(x, 0) for x in operands)
    op_name = re.search(r'op_name="([^"]*)"', line)
    parts[part_of(op_name[1] if op_name else "")] += times * moved
    links += times * (collective_bytes(line) or 0)
  total = sum(parts.values())
  return {
    "estimated_ms": 1e3 * total / H100_BANDWIDTH,
    "images_per_second": batch_size * H100_BANDWIDTH / total,
    "moved_bytes": total,
    "link_bytes": round(links),
    "parts_ms": {k: 1e3 * v / H100_BANDWIDTH for k, v in parts.most_common()},
  }


def operations(text):
  """(line, how often it runs) of a program's entry and its loops."""
  bodies, entry = {}, None
  for line in text.splitlines():
    start = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
    if start and not line.startswith(" "):
      lines = bodies.setdefault(start[2], [])
      entry = start[2] if start[1] else entry
    elif line.startswith("  ") and bodies:
      lines.append(line)

  def trips(line):
    """How often a loop runs: the constant that its counter stays below."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
      return int(known[1])
    condition = bodies[re.search(r"condition=%?([\w.\-]+)", line)[1]]
    limits = re.findall(r" s32\[\]\S* constant\((\d+)\)", "\n".join(condition))
    return int(limits[0]) if len(limits) == 1 else 1

  def walk(name, times):
    for line in bodies.get(name, ()):
      if " while(" in line:
        body = re.search(r"body=%?([\w.\-]+)", line)[1]
        yield from walk(body, times * trips(line))
      elif re.search(r" (call|conditional)\(", line):
        for called in re.findall(r"%([\w.\-]+)", line.split("), ", 1)[-1]):
          yield from walk(called, times)
      else:
        yield line, times

  return walk(entry, 1)


def part_of(op_name):
  """The part of the step that an operation belongs to."""
  return next((v for k, v in PARTS.items() if k in op_name), "other")


def size_of(kind):
  """Bytes of a type such as "(bf16[8,128]{1,0}, f32[])"."""
  return sum(
    BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", kind)
  )


def collective_bytes(line):
  """What a chip sends in a collective by ring algorithms, or None."""
  found = re.search(r" = (.*?) ([a-z\-]+?)(-start)?\(", line)
  if not found or found[2] not in COLLECTIVES:
    return None
  groups = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
  if groups:
    ways = int(groups[2])
  else:
    groups = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    ways = groups[1].count(",") + 1 if groups else 2
  kinds = found[1]
  if found[3] and found[2] != "all-reduce":  # operands and results in a tuple
    kinds = (
      kinds.rpartition("(")[2] if "), (" in kinds else kinds.split("), ")[-1]
    )
  size = size_of(kinds)
  if found[2] == "all-reduce":
    return 2 * size * (ways - 1) / ways
  if found[2] == "reduce-scatter":
    return size * (ways - 1)
  return size * (ways - 1) / ways


def shapes_of_call(line):
  """A key for a kernel: the shapes of its operands and results."""
  results, _, rest = line.partition(" custom-call(")
  operands = re.search(r"operand_layout_constraints=\{(.*?\})\}", rest)[1]
  shape = re.compile(r"\w+\[[\d,]*\]")
  return tuple(
    shape.findall(operands) + shape.findall(results.partition(" = ")[2])
  )


def kernel_cycles(folder):
  """Cycles of the attention kernels that were compiled.

  The TPU's instructions are scheduled when a kernel is compiled, one bundle a
  cycle. The outer of two loops runs over the grid, the inner over queries.

  Args:
    folder: with the compiler's files.

  Returns:
    {key of `shapes_of_call`: cycles}.
  """
  found = {}
  for file in folder.glob("*final_bundles.txt"):
    if "schedule-analysis" in file.name:
      continue
    text = file.read_text()
    head = text[: text.find("/* entry bundle") + 1]
    whole = re.findall(
      r"\[shape: (\w+\[[\d,]*\]), index: \d+, kind: (?:input|output)", head
    )
    windows = re.findall(r"The window shape is \w+\[([\d,]*)\]", head)
    if "attn" not in file.name or len(windows) < 2:
      continue
    q, k = (dims(x) for x in windows[:2])
    grid = math.prod(dims(whole[0].partition("[")[2])) // math.prod(q)
    padded = k[1] + -k[1] % pallas_attention.SUBLANES
    loops = q[1] // pallas_attention.queries(q[-3], padded)
    depth = collections.Counter(
      bundle[1].count(">")
      for bundle in re.finditer(
        r"^ *0x[0-9a-f]+ +(?:\w+)? *: *([> ]*)\{", text, re.M
      )
    )
    cycles = depth[0] + grid * (depth[1] + loops * depth[2])
    found[tuple(whole)] = cycles
  return found


def dims(text):
  """ "1,65]" -> [1, 65]."""
  return [int(n) for n in re.findall(r"\d+", text)]


def flops(jaxpr):
  """Floating-point operations of a jaxpr's products, of all devices."""
  total = 0
  for equation in jaxpr.eqns:
    name, given = equation.primitive.name, equation.params
    if name == "dot_general":
      (contracted, _), _ = given["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      size = math.prod(shape[i] for i in contracted)
      total += 2 * size * equation.outvars[0].aval.size
    elif name == "conv_general_dilated":
      kernel, numbers = equation.invars[1].aval, given["dimension_numbers"]
      features = kernel.shape[numbers.rhs_spec[0]]
      total += 2 * equation.outvars[0].aval.size * kernel.size // features
    elif name == "pallas_call":
      total += given["cost_estimate"].flops
    else:
      inner = [flops(j) for x in given.values() for j in jaxprs(x)]
      times = given.get("length", 1) if name == "scan" else 1
      if name == "shard_map":
        times = given["mesh"].size
      total += times * (max(inner, default=0) if name == "cond" else sum(inner))
  return total


def jaxprs(value):
  """The jaxprs in an equation's parameter."""
  values = value if isinstance(value, tuple | list) else [value]
  found = [getattr(x, "jaxpr", x) for x in values]
  return [x for x in found if hasattr(x, "eqns")]
