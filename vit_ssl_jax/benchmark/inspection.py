"""What a compiled program would be slow at: counts, bytes, collectives."""

import collections

from vit_ssl_jax.benchmark import hlo, parts

COSTLIEST = 10  # collectives that are named
SLICES = {"dynamic-slice", "slice", "gather"}


def figures(program):
  """What a program would be slow at: a dict of numbers.

  Returns:
    kernels: how many instructions a run of it does.
    fusions, matrix_products, copies: of these, how many are fusions, have a
      matrix product, and only copy or transpose.
    custom_calls: target -> how many.
    upcasts: how many conversions of bfloat16 to float32 stand in its text,
      and of these how many outside a fusion.
    transposes: how many transposes stand in its text, in fusions too.
    bytes: that all instructions of a run read and write.
    collective_bytes: kind -> bytes, of all that is done on one device.
    collectives: the costliest of them.
  """
  kernels, bytes_by = collections.Counter(), collections.Counter()
  custom = collections.Counter()
  upcasts = transposes = alone = 0
  for x in program.instructions.values():
    transposes += x.opcode == "transpose"
    upcasts += is_upcast(program, x)
  for x, times in program.executed:
    kind = program.kind(x)
    kernels[kind] += times
    kernels["fusion"] += times * (x.opcode == "fusion")
    alone += is_upcast(program, x)
    if x.opcode == "custom-call":
      custom[hlo.custom_call_target(x)] += times
    if kind == "collective":
      name = x.opcode.removesuffix("-start")
      bytes_by[name] += times * moved(program, x)
  return {
    "kernels": sum(n for k, n in kernels.items() if k != "fusion"),
    "fusions": kernels["fusion"],
    "matrix_products": kernels["matrix product"],
    "copies": kernels["copy or transpose"],
    "bytes": sum(n * traffic(program, x) for x, n in program.executed),
    "transposes": transposes,
    "upcasts": upcasts,
    "upcasts_outside_fusions": alone,
    "custom_calls": dict(custom),
    "collective_bytes": dict(bytes_by),
    "collectives": collectives(program),
  }


def is_upcast(program, x):
  """Whether an instruction converts bfloat16 to float32."""
  if x.opcode != "convert" or not x.shape.startswith("f32"):
    return False
  return any(y.shape.startswith("bf16") for y in program.operands(x))


def traffic(program, x):
  """Bytes that an instruction reads and writes.

  Of an operand that is only sliced the slices count, and of a result that is an
  operand with a slice updated twice the slice.
  """
  if x.opcode != "fusion":
    if x.opcode in SLICES:
      return 2 * hlo.size_in_bytes(x.shape)
    operands = program.operands(x)
    if x.opcode == "dynamic-update-slice":
      return 2 * hlo.size_in_bytes(operands[1].shape)
    read = sum(hlo.size_in_bytes(y.shape) for y in operands)
    return read + hlo.size_in_bytes(x.shape)
  inner = program.fused(x)
  users = collections.defaultdict(list)
  updated = {}
  for y in inner:
    operands = program.operands(y)
    for i, operand in enumerate(operands):
      users[operand.name].append((y, i))
    if y.opcode == "dynamic-update-slice":
      updated[y.shape] = hlo.size_in_bytes(operands[1].shape)
  total = updated.get(x.shape, hlo.size_in_bytes(x.shape))
  for y in inner:
    if y.opcode != "parameter":
      continue
    slices = [z for z, i in users[y.name] if z.opcode in SLICES and i == 0]
    if slices and len(slices) == len(users[y.name]):
      total += sum(hlo.size_in_bytes(z.shape) for z in slices)
    elif y.shape in updated and y.shape == x.shape:
      total += updated[y.shape]
    else:
      total += hlo.size_in_bytes(y.shape)
  return total


def moved(program, x):
  """Bytes of a collective on one device: what it reduces, or has gathered.

  That is the whole array: what an all-reduce or a reduce-scatter starts from,
  and what an all-gather ends with.
  """
  given = sum(hlo.size_in_bytes(y.shape) for y in program.operands(x))
  if x.opcode == "all-gather":
    return hlo.size_in_bytes(x.shape)
  if x.opcode == "all-gather-start":  # its operands stand beside its results
    return hlo.size_in_bytes(x.shape) - given
  return given


def collectives(program):
  """The costliest collectives, each with its bytes, and where it comes from."""
  found = [
    {
      "kind": x.opcode.removesuffix("-start"),
      "bytes": moved(program, x) * times,
      "times": times,
      "part": parts.part(program, x)[0],
      "from": x.op_name,
    }
    for x, times in program.executed
    if program.kind(x) == "collective"
  ]
  return sorted(found, key=lambda x: -x["bytes"])[:COSTLIEST]
