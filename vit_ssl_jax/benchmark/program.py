"""Reads what a compiled program does, and how long it is estimated to take."""

import collections
import math
import re

from jax.extend.core import jaxprs_in_params

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
# What a chip sends by ring algorithms, times its result, over n chips.
COLLECTIVES = {
  "all-reduce": lambda n: 2 * (n - 1) / n,
  "all-gather": lambda n: (n - 1) / n,
  "reduce-scatter": lambda n: n - 1,
  "all-to-all": lambda n: (n - 1) / n,
  "collective-permute": lambda n: 1,
}
SLICES = ("slice", "dynamic-slice", "dynamic-update-slice")
NO_WORK = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")


def figures(text, seconds, chips):
  """What operations take: estimated_ms, lookups, link_bytes, parts_ms.

  Args:
    text: the compiled HLO.
    seconds: (line of an operation) -> seconds.
    chips: how many it is for, all of which take part in each collective.
  """
  parts, links, lookups = collections.Counter(), 0.0, 0
  for line, times in operations(text):
    sent = times * collective_bytes(line, chips)
    name = re.search(r'op_name="([^"]*)"', line)
    part = next((x for k, x in PARTS.items() if name and k in name[1]), "other")
    parts["collectives" if sent else part] += 1e3 * times * seconds(line)
    links += sent
    lookups += times * bool(re.match(r"\s*(ROOT )?%(gather|scatter)", line))
  return {
    "estimated_ms": sum(parts.values()),
    "lookups": lookups,
    "link_bytes": round(links),
    "parts_ms": dict(parts.most_common()),
  }


def tpu_seconds(schedules, clock, bandwidth):
  """The time of a TPU's operation: (line) -> seconds.

  A kernel of ours takes its instructions, or what it writes and reads at least.
  Gathers and scatters take none: the compiler says nothing of them.

  Args:
    schedules: of `kernel_cycles`.
    clock, bandwidth: in Hz, and of the memory in bytes a second.
  """
  kernels = kernel_cycles(schedules)

  def seconds(line):
    if kernel := re.search(r"%(\w+_kernel_\w+)\S* = (.*?) custom-call", line):
      moved = 2 * size_of(kernel[2])
      return max(kernels[kernel[1]] / clock, moved / bandwidth)
    cycles = re.search(r'estimated_cycles":"(\d+)"', line)
    return int(cycles[1]) / clock if cycles else 0

  return seconds


def gpu_seconds(text, bandwidth):
  """The least time of a GPU's operation: (line) -> seconds.

  It is what the operation has to read and write over the bandwidth: a part of
  an array that it slices, or updates in place, and nothing of what cuBLAS has
  for its own use (s8).

  Args:
    text: the compiled HLO, whose lines have to come in its order.
    bandwidth: in bytes a second.
  """
  bodies, sizes = computations(text)[0], {}

  def seconds(line):
    found = parse(line)
    if not found:
      return 0
    name, kind, opcode, operands = found
    sizes[name] = written = size_of(re.sub(r", s8\[\d+\]", "", kind))
    if opcode in NO_WORK:
      return 0
    read = [sizes.get(x, 0) for x in operands]
    if called := re.search(r"calls=%?([\w.\-]+)", line):
      sliced, untouched = slices(bodies.get(called[1], ()))
      read = [sliced.get(i, size) for i, size in enumerate(read)]
      written -= untouched
    return (written + sum(read)) / bandwidth

  return seconds


def slices(lines):
  """What a GPU's fusion reads and writes only a part of.

  Returns:
    The bytes read of its parameters, by their numbers, and those that an update
    in place leaves.
  """
  inside = [x for x in map(parse, lines) if x]
  sizes = {name: size_of(kind) for name, kind, *_ in inside}
  sliced, untouched = {}, 0
  for line in lines:
    if number := re.search(r"%([\w.\-]+) = \S+ parameter\((\d+)\)", line):
      uses = [x for x in inside if number[1] in x[3]]
      if all(x[2] in SLICES and x[3][0] == number[1] for x in uses):
        parts = [sizes[x[0]] for x in uses if x[2] != SLICES[-1]]
        sliced[int(number[2])] = sum(parts)
  for name, _, opcode, operands in inside:
    if opcode == SLICES[-1]:
      untouched += sizes[name] - sizes[operands[1]]
  return sliced, untouched


def parse(line):
  """An operation's name, type, opcode and operands; None if it is none."""
  found = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z\-]+)\((.*)", line)
  if not found:
    return None
  operands = re.findall(r"%([\w.\-]+)", found[4].split("), ")[0])
  return found[1], found[2], found[3], operands


def computations(text):
  """A program's computations, lists of lines by name, and the entry's name."""
  bodies, entry = {}, None
  for line in text.splitlines():
    if start := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
      lines = bodies.setdefault(start[2], [])
      entry = start[2] if start[1] else entry
    elif line.startswith("  ") and bodies:
      lines.append(line)
  return bodies, entry


def operations(text):
  """(line, how often it runs) of a program's entry and its loops."""
  bodies, entry = computations(text)

  def trips(line):
    """How often a loop runs: the constant that its counter stays below."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
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


def size_of(kind):
  """Bytes of a type such as "(bf16[8,128]{1,0}, f32[])"."""
  return sum(
    int(bits or 8) // 8 * math.prod(int(n) for n in dims.split(",") if n)
    for bits, dims in re.findall(r"[a-z]+(\d*)\w*\[([\d,]*)\]", kind)
  )


def collective_bytes(line, chips):
  """What a chip sends in an operation; 0 where it is no collective.

  One that runs beside others counts where its result is there.
  """
  kinds = "|".join(COLLECTIVES)
  found = re.search(rf" = (.*?) ({kinds})(-done)?\(", line)
  return size_of(found[1]) * COLLECTIVES[found[2]](chips) if found else 0


def kernel_cycles(folder):
  """Cycles of our kernels that were compiled, by their names.

  The TPU's instructions are scheduled when a kernel is compiled, one bundle a
  cycle, and are in a folder of the compiler's files. The outer of two loops
  runs over the grid, the inner, if any, over queries; the kernel's name says
  how often.
  """
  found = collections.Counter()
  for file in folder.glob("*-final_bundles.txt"):
    if named := re.search(r"\w+_kernel_(\d+)x(\d+)", file.name):
      bundle = r"^ *0x[0-9a-f]+ +\w* *: *([> ]*)\{"
      loops = re.findall(bundle, file.read_text(), re.MULTILINE)
      depth = collections.Counter(x.count(">") for x in loops)
      outer, inner = map(int, named.groups())
      cycles = depth[0] + outer * (depth[1] + inner * depth[2])
      found[named[0]] = max(found[named[0]], cycles)
  return dict(found)


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
      inner = [flops(x) for x in jaxprs_in_params(given)]
      if "branches_platforms" in given:  # a form for each; the last is plain
        inner = inner[-1:]
      times = given.get("length", 1) if name == "scan" else 1
      times = given["mesh"].size if name == "shard_map" else times
      total += times * (max(inner, default=0) if name == "cond" else sum(inner))
  return total
