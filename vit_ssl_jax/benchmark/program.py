"""Cost model of compiled HLO."""

import collections
import math
import re
from typing import NamedTuple

from jax.extend.core import jaxprs_in_params

# Bytes that a chip sends in ring algorithms, times its result, over n chips.
COLLECTIVES = {
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "all-gather": lambda n: (n - 1) / n,
  "reduce-scatter": lambda n: n - 1,
  "all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
}
UPDATE = "dynamic-update-slice"
SLICES = ("slice", "dynamic-slice", UPDATE)
NO_WORK = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")
TYPE = r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]"  # such as bf16[8,128]


class Op(NamedTuple):
  """An operation of HLO: result type, opcode, names of operands, the line."""

  type: str
  opcode: str
  operands: list[str]
  line: str

  @property
  def bytes(self):
    """Bytes of the result; s8 is cuBLAS's workspace and does not count."""
    return sum(
      int(bits or 8) // 8 * math.prod(shape)
      for letters, bits, shape in types(self.type)
      if letters + bits != "s8"
    )

  @property
  def called(self):
    """Names after calls=, body=, condition=, to_apply= and the like."""
    return dict(re.findall(r"(\w+)=%?([\w.\-]+)", self.line))


def types(text):
  """(letters, bits, shape) of each array in a type."""
  for letters, bits, shape in re.findall(TYPE, text):
    yield letters, bits, tuple(int(n) for n in shape.split(",") if n)


def parse(text):
  """A program's computations, {name: {name of its op: Op}}, the entry last."""
  computations = {}
  for line in text.splitlines():
    if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
      ops = computations.setdefault(start[1], {})
    elif op := re.match(
      r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z\-]+)\((.*)", line
    ):
      operands = re.findall(r"%([\w.\-]+)", op[4].split("), ")[0])
      ops[op[1]] = Op(op[2], op[3], operands, line)
  return computations


def executions(computations, name=None, times=1):
  """(op, its computation, number of executions), loops and calls included."""
  ops = computations[name or list(computations)[-1]]
  for op in ops.values():
    if op.opcode == "while":
      number = times * trips(op, computations)
      yield from executions(computations, op.called["body"], number)
    elif op.opcode in ("call", "conditional"):
      for called in re.findall(r"%([\w.\-]+)", op.line.split("), ", 1)[-1]):
        if called in computations:
          yield from executions(computations, called, times)
    else:
      yield op, ops, times


def trips(loop, computations):
  """Trip count of a loop: the constant that bounds its counter."""
  if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.line):
    return int(known[1])
  condition = computations[loop.called["condition"]].values()
  lines = "\n".join(op.line for op in condition)
  limits = re.findall(r" s32\[\]\S* constant\((\d+)\)", lines)
  return int(limits[0]) if len(limits) == 1 else 1


def tpu_seconds(computations, kernels, chip):
  """Seconds by the compiler's cycles, and `kernel_cycles` of Pallas kernels."""
  total = 0.0
  for op, _, times in executions(computations):
    if "tpu_custom_call" in op.line:
      moved = 2 * op.bytes / chip.bandwidth
      total += times * max(kernels[kernel_key(op)] / chip.clock, moved)
    elif cycles := re.search(r'estimated_cycles":"(\d+)"', op.line):
      total += times * int(cycles[1]) / chip.clock
  return total


def gpu_bytes(computations):
  """Bytes that a GPU's kernels read and write; of a slice, its part alone."""
  total = 0
  for op, ops, times in executions(computations):
    if op.opcode in NO_WORK:
      continue
    moved = [ops[x].bytes if x in ops else 0 for x in op.operands]
    fused = computations.get(op.called.get("calls"), {})
    for name, inner in fused.items():
      if inner.opcode == "parameter":
        users = [x for x in fused.values() if name in x.operands]
        # Elsewhere than in the first place it is an index.
        if all(x.opcode in SLICES and x.operands[0] == name for x in users):
          number = int(re.search(r"parameter\((\d+)\)", inner.line)[1])
          moved[number] = sum(x.bytes for x in users if x.opcode != UPDATE)
      elif inner.opcode == UPDATE:
        moved.append(fused[inner.operands[1]].bytes - inner.bytes)
    total += times * (op.bytes + sum(moved))
  return total


def link_bytes(computations, chips):
  """Bytes that each chip sends; asynchronous collectives count when done."""
  total = 0.0
  for op, _, times in executions(computations):
    if share := COLLECTIVES.get(op.opcode.removesuffix("-done")):
      total += times * op.bytes * share(chips)
  return round(total)


def kernel_cycles(folder, computations, jaxpr):
  """{key: cycles} of Pallas kernels, from the schedules that a TPU's compiler
  leaves in a folder, a bundle of instructions a cycle, and the jaxpr's loops.
  """
  loops, cycles = dict(kernel_loops(jaxpr)), collections.Counter()
  ops = {name: op for x in computations.values() for name, op in x.items()}
  for file in folder.glob("*-final_bundles.txt"):
    name = re.search(r"^\d+-(.+)-\d+-final_bundles", file.name)
    if name and "tpu_custom_call" in getattr(ops.get(name[1]), "line", ""):
      bundle = r"^ *0x[0-9a-f]+ +\w* *: *([> ]*)\{"
      depths = re.findall(bundle, file.read_text(), re.MULTILINE)
      depth = collections.Counter(x.count(">") for x in depths)
      key = kernel_key(ops[name[1]])
      grid, inner = loops[key]
      total = depth[0] + grid * (depth[1] + inner * depth[2])
      cycles[key] = max(cycles[key], total)  # equal kernels are compiled once
  return cycles


def kernel_key(op):
  """A kernel's name and the shapes of its results."""
  name = re.search(r"%([\w\-]+?)(?:\.\d+)? =", op.line)[1]
  return name, tuple(shape for *_, shape in types(op.type))


def kernel_loops(jaxpr):
  """(key, (size of the grid, trips of the loop inside)) of Pallas kernels."""
  for equation in jaxpr.eqns:
    params = equation.params
    if equation.primitive.name == "pallas_call":
      shapes = tuple(x.aval.shape for x in equation.outvars)
      grid = math.prod(params["grid_mapping"].grid)
      trips = max(loop_lengths(params["jaxpr"]), default=1)
      yield (params["name"], shapes), (grid, trips)
    else:
      for inner in jaxprs_in_params(params):
        yield from kernel_loops(inner)


def loop_lengths(jaxpr):
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      yield equation.params["length"]
    for inner in jaxprs_in_params(equation.params):
      yield from loop_lengths(inner)
