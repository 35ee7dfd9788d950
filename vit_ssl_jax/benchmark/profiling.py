"""Where the time of a step goes: a trace of it, by operation and by part.

A trace of `jax.profiler` says how long each instruction of the compiled
program took; the program's text says what the instruction is and from which
part of the code it comes.
"""

import collections
import contextlib
import pathlib
import tempfile

import jax

from vit_ssl_jax.benchmark import hlo, parts

STEPS = 3  # that are traced
COSTLIEST = 15  # operations that are named
# On a GPU one graph would hide its kernels' names.
NO_GRAPHS = {"xla_gpu_enable_command_buffer": ""}


def profile(run, trace=""):
  """Looks where the time of a step goes.

  Args:
    run: a `measuring.Timed`, warmed up.
    trace: a folder that the trace is kept in, for XProf or Perfetto, or "".

  Returns:
    step_seconds: of a traced step, from its first operation to its last.
    idle_share: of that, in percent, when no operation ran on a device.
    operation_seconds: of all operations of a step, on one device.
    parts: part of the code -> its share of these, in percent, of which the
      backward pass's stands behind it.
    kinds: kind of operation -> its share, in percent.
    unattributed_share: in percent, of operations from no known part.
    operations: the costliest, each with its name, part, kind, share, seconds
      and how often it ran in a step.
  """
  compiled = run.compiled
  if jax.default_backend() == "gpu":
    compiled = run.lowered.compile(NO_GRAPHS)
  state, batch = run.state, run.batch
  state, _ = jax.block_until_ready(compiled(state, batch))
  with contextlib.ExitStack() as stack:
    folder = trace or stack.enter_context(tempfile.TemporaryDirectory())
    folder = pathlib.Path(folder)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
      for _ in range(STEPS):
        state, _ = jax.block_until_ready(compiled(state, batch))
    run.state = state
    written = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))[-1]
    data = jax.profiler.ProfileData.from_file(str(written))
    program = hlo.Program(compiled.as_text())
    return summary(program, events(data, program), STEPS)


def events(data, program):
  """(device, instruction, start, end), in seconds, of what ran of a program.

  Loops and calls are left out: what they do is there itself. What ran on a
  device and is not of the program, as far as can be told, comes as an
  instruction without a path.
  """
  for plane in data.planes:
    on_device = plane.name.startswith("/device:")
    for line in device_lines(plane) if on_device else plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        name = stats.get("hlo_op") or (event.name if on_device else "")
        name = str(name).lstrip("%").split(" ")[0]
        x = program.instructions.get(name)
        if x is None and on_device:
          x = hlo.Instruction(name, "unknown", "", "", ())
        if x is None or x.opcode in hlo.CONTROL:
          continue
        device = plane.name, stats.get("device_ordinal", 0)
        yield device, x, event.start_ns / 1e9, event.end_ns / 1e9


def device_lines(plane):
  """The lines of an accelerator's plane that show each operation once.

  A GPU's are its streams, a TPU's is called XLA Ops; others show the same time
  again, by step, by program or by name.
  """
  lines = list(plane.lines)
  streams = [x for x in lines if x.name.startswith("Stream")]
  return streams or [x for x in lines if x.name == "XLA Ops"] or lines


def summary(program, found, steps):
  """What `profile` returns, of the `events` of some steps."""
  seconds, counts = collections.Counter(), collections.Counter()
  spans = collections.defaultdict(list)
  instructions = {}
  for device, x, start, end in found:
    seconds[x.name] += end - start
    counts[x.name] += 1
    instructions[x.name] = x
    spans[device].append((start, end))
  total, devices = sum(seconds.values()), len(spans) or 1
  by_part, backward = collections.Counter(), collections.Counter()
  by_kind = collections.Counter()
  rows = []
  for name, taken in seconds.most_common():
    x = instructions[name]
    share = 100 * taken / total
    part, is_backward = parts.part(program, x)
    kind = program.kind(x)
    by_part[part] += share
    backward[part] += share * is_backward
    by_kind[kind] += share
    rows.append(
      {
        "name": name,
        "part": part,
        "kind": kind,
        "share": share,
        "seconds": taken / steps / devices,
        "times": counts[name] / steps / devices,
        "from": x.op_name,
      }
    )
  span = sum(
    max(e for _, e in s) - min(b for b, _ in s) for s in spans.values()
  )
  busy = sum(map(union, spans.values()))
  return {
    "step_seconds": span / steps / devices,
    "idle_share": 100 * (1 - busy / span) if span else None,
    "operation_seconds": total / steps / devices,
    "parts": {
      part: {"share": share, "backward": backward[part]}
      for part, share in by_part.most_common()
    },
    "kinds": dict(by_kind.most_common()),
    "unattributed_share": by_part[parts.UNKNOWN],
    "operations": rows[:COSTLIEST],
  }


def union(spans):
  """How long at least one of some (start, end) lasts."""
  total, last = 0.0, float("-inf")
  for start, end in sorted(spans):
    total += max(0.0, end - max(start, last))
    last = max(last, end)
  return total
