"""What a run writes down while it trains: metrics.jsonl, TensorBoard events."""

import collections
import concurrent.futures
import hashlib
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
RECENT = 100  # lines that are kept at hand
MOST_SKIPPED = 10  # steps in a row that are not finite, with which a run ends
# How far the teacher's targets of a batch differ from image to image, in nats.
SIGNAL = "teacher_kl"
EVALUATED = {"knn", "top1"}  # figures on the test images
VAL = "val_"  # begins the names of figures on validation images


def read(workdir):
  """The lines of a workdir's metrics.jsonl, as a list of dicts.

  What is no line of it is left out, such as the last one where a kill cut it
  off.
  """
  path = pathlib.Path(workdir, NAME)
  if not path.exists():
    return []
  text = path.read_text(encoding="utf-8", errors="replace")
  return [x for x in map(parse, text.splitlines()) if x]


def parse(line):
  """A line as a dict, or None where it is damaged."""
  try:
    content = json.loads(line)
    steps, others = content["step"], content["epoch"] + content["seconds"]
  except (ValueError, TypeError, KeyError):
    return None
  return content if steps >= 1 and math.isfinite(others) else None


class NotFiniteError(Exception):
  """A step's value is not finite; args are the step and the value's name."""


class Recorder:
  """Keeps a run's metrics: metrics.jsonl, TensorBoard events, recent lines.

  A step's values stay on the device until `flush`, so that the host need not
  wait for the step. Lines of steps that a resumed run will do again are
  dropped first, so that every step stands in the file once. Of several
  processes the first alone writes; all of them see what is not finite.

  Values that are not finite are left out of a line, and it says "skipped"; a
  run goes on after such a line if it is told to skip them.

  Attributes:
    digest: SHA-256 of the lines until now.
    recent: the last lines, dicts with "step", "epoch", "seconds" and values.
    evaluated: the lines of steps after which the model was evaluated, each with
      "signal", the median of the last lines' `SIGNAL`.
    warned: the warning that the user has been given, or None.
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
    self.path = pathlib.Path(workdir, NAME)
    kept = [line for line in read(workdir) if line["step"] <= start_step]
    self.digest = hashlib.sha256()
    text = self.encode(kept)
    if len(kept) != start_step:
      cli.log(
        f"warning: {self.path} has {len(kept)} whole lines of {start_step}"
        " steps: the figures of the others are lost"
      )
    elif digest and self.digest.hexdigest() != digest:
      cli.log(
        f"warning: {self.path} is not what the run has written: figures of the"
        " steps before may be wrong"
      )
    self.tensors = tensors
    self.skips = skips
    self.writes = hosts.is_primary()
    if self.writes:
      files.write(self.path, text)
    self.steps_per_epoch = steps_per_epoch
    self.pending = []
    self.warned = None
    # Of the steps before, how many in a row were skipped.
    flags = ("skipped" in line for line in reversed(kept))
    self.skipped = len(list(itertools.takewhile(bool, flags)))
    self.recent = collections.deque(maxlen=RECENT)
    self.evaluated = []
    self.remember(kept)
    found = [v for x in kept for k, v in x.items() if k.startswith(VAL)]
    self.best = max(found, default=-1.0)
    earlier = kept[-1]["seconds"] if kept else 0.0
    self.begin = time.perf_counter() - earlier
    # TensorFlow, which clu's writers import, loads beside the first steps.
    self.thread = concurrent.futures.ThreadPoolExecutor(1)
    self.events = None
    if tensorboard and self.writes:
      self.events = self.thread.submit(open_events, str(workdir))
    self.written = [self.events]

  def __enter__(self):
    return self

  def __exit__(self, *error):
    """Waits for the events; that some were not written costs no result."""
    self.thread.shutdown()
    if self.events is None:
      return
    problem = next((f.exception() for f in self.written if f.exception()), None)
    if not self.events.exception():
      self.events.result().close()
    if problem:
      cli.log(f"warning: TensorBoard events were not written: {problem}")

  def encode(self, lines):
    """Lines as text, which the digest takes in."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    self.digest.update(text.encode())
    return text

  def elapsed(self):
    """Seconds of wall time in this workdir, earlier runs' included."""
    return round(time.perf_counter() - self.begin, 3)

  def add(self, steps, values):
    """Takes the metrics of some steps, which may still be computed.

    Args:
      steps: a range.
      values: scalars, or for several steps arrays of at least their number.
    """
    seconds = {"seconds": self.elapsed()}
    self.pending.append((steps, values, [dict(seconds) for _ in steps]))

  def complete(self, figures):
    """Adds what evaluation has found to the last step's line.

    Returns:
      The figure of validation, where it is better than all before, or None.
    """
    *_, endings = self.pending[-1]
    endings[-1] |= figures | {"seconds": self.elapsed()}
    value = max(
      (v for k, v in figures.items() if k.startswith(VAL)), default=-1
    )
    if value <= self.best:
      return None
    self.best = value
    return value

  def flush(self, keep_last=False):
    """Fetches and writes what was added, or all but what was added last.

    Raises:
      NotFiniteError: a value is not finite; the lines before are written.
    """
    count = len(self.pending) - keep_last
    ready, self.pending = self.pending[:count], self.pending[count:]
    lines = [line for added in ready for line in self.lines(*added)]
    found = ((i, self.not_finite(line)) for i, line in enumerate(lines))
    bad = next(((i, name) for i, name in found if name), None)
    good = lines[: bad[0]] if bad else lines
    for line in good:
      line.pop("bad_tensor", None)
    if self.writes:
      with self.path.open("a") as f:
        f.write(self.encode(good))
    if self.events is not None:
      self.written.append(self.thread.submit(write_events, self.events, good))
    self.remember(good)
    if bad:
      raise NotFiniteError(lines[bad[0]]["step"], bad[1])

  def remember(self, lines):
    """Keeps the recent lines, and those with figures of an evaluation."""
    for line in lines:
      self.recent.append(line)
      if not EVALUATED.isdisjoint(line):
        signal = [x[SIGNAL] for x in self.recent if SIGNAL in x]
        middle = {"signal": statistics.median(signal)} if signal else {}
        self.evaluated.append(line | middle)

  def not_finite(self, line):
    """What in a line ends the run because it is not finite, or None.

    Where such steps are skipped it is the tenth of them in a row; a line of one
    loses the values that JSON cannot hold.
    """
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
      cli.log(f"warning: step {line['step']} is skipped: {name} is not finite")
    for key in bad:
      line.pop(key)
    line["skipped"] = 1
    return None

  def lines(self, steps, values, endings):
    """The lines of what was added, with numbers from the device."""
    values = {
      k: np.ravel(v).tolist() for k, v in jax.device_get(values).items()
    }
    for i, (step, ending) in enumerate(zip(steps, endings, strict=True)):
      epoch = round(step / self.steps_per_epoch, 4)
      now = {name: value[i] for name, value in values.items()}
      yield {"step": step, "epoch": epoch} | now | ending


def open_events(workdir):
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")
  from clu import metric_writers

  return metric_writers.SummaryWriter(workdir)


def write_events(events, lines):
  for line in lines:
    values = {k: v for k, v in line.items() if k not in ("step", "epoch")}
    events.result().write_scalars(line["step"], values)


def best_on_val(lines, name):
  """The final figures of a run with validation images.

  Args:
    lines: all of the run's lines.
    name: of the figure on the test images; validation's has `VAL` before it.

  Returns:
    {} where there were none, else the best figure on the validation images,
    the epoch and the step it was found at, and the test figure there, which
    was not chosen by looking at the test images.
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
