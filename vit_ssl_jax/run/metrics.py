"""Training metrics: metrics.jsonl and TensorBoard."""

import collections
import concurrent.futures
import hashlib
import importlib.util
import itertools
import json
import math
import pathlib
import statistics
import time

import jax
import numpy as np

from vit_ssl_jax import cli, files
from vit_ssl_jax.parallel import hosts

NAME = "metrics.jsonl"
RECENT = 100  # lines held in memory
MOST_SKIPPED = 10  # consecutive non-finite steps that end a run
SIGNAL = "teacher_kl"  # spread of the teacher's targets over a batch, in nats
EVALUATED = {"knn", "top1"}  # figures on the test images
VAL = "val_"  # prefix of figures on the validation images


class NotFiniteError(Exception):
  """A non-finite value in a step; args are the step and the value's name."""


def read(workdir):
  """Reads metrics.jsonl as a list of dicts, without malformed lines."""
  path = pathlib.Path(workdir, NAME)
  text = path.read_text("utf-8", "replace") if path.exists() else ""
  return [x for x in map(parse, text.splitlines()) if x]


def parse(line):
  """Parses a line; None if it is malformed."""
  try:
    content = json.loads(line)
    steps, others = content["step"], content["epoch"] + content["seconds"]
  except (ValueError, TypeError, KeyError):
    return None
  return content if steps >= 1 and math.isfinite(others) else None


class Recorder:
  """Writes metrics.jsonl and TensorBoard events.

  Values stay on the device until `flush`, so that the host does not wait for a
  step. Process 0 alone writes; all processes see non-finite values.

  Attributes:
    digest: SHA-256 of all lines so far.
    recent: the last lines: "step", "epoch", "seconds" and values.
    evaluated: lines with an evaluation, and "signal", the median of `SIGNAL`.
  """

  def __init__(
    self,
    workdir,
    start_step,
    steps_per_epoch,
    tensorboard,
    digest=None,
    tensors=(),
    skips=False,
  ):
    """Drops lines after `start_step`, and compares the others with `digest`."""
    self.path = pathlib.Path(workdir, NAME)
    self.steps_per_epoch = steps_per_epoch
    self.tensors = tensors
    self.skips = skips
    self.pending = []
    self.digest = hashlib.sha256()
    lines = [line for line in read(workdir) if line["step"] <= start_step]
    text = self.encode(lines)
    if len(lines) != start_step:
      cli.log(
        f"warning: {self.path} has {len(lines)} valid lines for {start_step}"
        " steps: the other steps' metrics are lost"
      )
    elif digest and self.digest.hexdigest() != digest:
      cli.log(f"warning: {self.path} was changed since the checkpoint")
    self.writes = hosts.is_primary()
    if self.writes:
      files.write(self.path, text)
    # Consecutive skipped steps before this one.
    flags = ("skipped" in line for line in reversed(lines))
    self.skipped = len(list(itertools.takewhile(bool, flags)))
    self.recent = collections.deque(maxlen=RECENT)
    self.evaluated = []
    self.remember(lines)
    self.best = max((validation(line) for line in lines), default=-1.0)
    self.begin = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)
    # TensorFlow, which the writer imports, loads in the background.
    self.thread = concurrent.futures.ThreadPoolExecutor(1)
    self.events = []
    if tensorboard and self.writes:
      self.events.append(self.thread.submit(open_events, str(workdir)))

  def __enter__(self):
    return self

  def __exit__(self, *error):
    """Closes the events; failing to write them is only a warning."""
    self.thread.shutdown()
    problems = [x.exception() for x in self.events if x.exception()]
    if problems:
      cli.log(f"warning: could not write TensorBoard events: {problems[0]}")
    elif self.events:
      self.events[0].result().close()

  def encode(self, lines):
    """Formats lines, and adds them to the digest."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    self.digest.update(text.encode())
    return text

  def elapsed(self):
    """Wall time in this workdir in seconds, including earlier runs."""
    return round(time.perf_counter() - self.begin, 3)

  def add(self, steps, values):
    """Adds the metrics of a range of steps: scalars, or arrays for several."""
    self.pending.append((steps, values, self.elapsed(), {}))

  def complete(self, figures):
    """Adds an evaluation to the last line; returns a best validation figure."""
    self.pending[-1][-1].update(figures, seconds=self.elapsed())
    if validation(figures) <= self.best:
      return None
    self.best = validation(figures)
    return self.best

  def flush(self, keep_last=False):
    """Writes the added lines, but for the last addition if `keep_last`."""
    count = len(self.pending) - keep_last
    ready, self.pending = self.pending[:count], self.pending[count:]
    lines, error = [], None
    for line in itertools.chain.from_iterable(self.lines(*x) for x in ready):
      if name := self.not_finite(line):
        error = NotFiniteError(line["step"], name)
        break
      line.pop("bad_tensor", None)
      lines.append(line)
    if self.writes:
      with self.path.open("a") as f:
        f.write(self.encode(lines))
    if self.events:
      written = self.thread.submit(write_events, self.events[0], lines)
      self.events.append(written)
    self.remember(lines)
    if error:
      raise error

  def remember(self, lines):
    for line in lines:
      self.recent.append(line)
      if not EVALUATED.isdisjoint(line):
        signal = [x[SIGNAL] for x in self.recent if SIGNAL in x]
        median = {"signal": statistics.median(signal)} if signal else {}
        self.evaluated.append(line | median)

  def not_finite(self, line):
    """Names the value that ends the run; drops those of a skipped step."""
    bad = [k for k, v in line.items() if not math.isfinite(v)]
    number = line.get("bad_tensor", -1)
    if not bad and number < 0:
      self.skipped = 0
      return None
    name = f"the gradient of {self.tensors[number]}" if number >= 0 else bad[0]
    self.skipped += 1
    if not self.skips or self.skipped == MOST_SKIPPED:
      return name
    if self.skipped == 1:
      cli.log(f"warning: skipping step {line['step']}: {name} is not finite")
    for key in bad:
      line.pop(key)
    line["skipped"] = 1
    return None

  def lines(self, steps, values, seconds, figures):
    """Yields a line for each step; the last one has the figures."""
    values = jax.tree.map(
      lambda x: np.ravel(x).tolist(), jax.device_get(values)
    )
    for i, step in enumerate(steps):
      line = {"step": step, "epoch": round(step / self.steps_per_epoch, 4)}
      line |= {name: value[i] for name, value in values.items()}
      line["seconds"] = seconds
      yield line | (figures if step == steps[-1] else {})


def validation(figures):
  """The validation figure in percent, or -1."""
  return max((v for k, v in figures.items() if k.startswith(VAL)), default=-1.0)


def can_write_events():
  """True if the packages of TensorBoard's writer are installed."""
  packages = ("tensorflow", "clu", "tensorboard")
  return all(map(importlib.util.find_spec, packages))


def open_events(workdir):
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
  from clu import metric_writers

  return metric_writers.SummaryWriter(workdir)


def write_events(writer, lines):
  for line in lines:
    values = {k: v for k, v in line.items() if k not in ("step", "epoch")}
    writer.result().write_scalars(line["step"], values)


def best_on_val(lines, name):
  """Final figures of the best epoch by validation; {} without such images.

  `name` is that of the figure on the test images, such as "top1".
  """
  lines = [line for line in lines if VAL + name in line]
  if not lines:
    return {}
  best = max(lines, key=lambda line: line[VAL + name])  # the first of equals
  return {
    f"best_{VAL}{name}": best[VAL + name],
    f"{name}_at_best_val": best[name],
    "epoch_at_best_val": best["epoch"],
    "step_at_best_val": best["step"],
  }
