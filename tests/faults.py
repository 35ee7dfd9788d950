"""Faults, each tried on runs of the command line in processes of their own.

A run has to end right, or with one sentence and status 2.
"""

import collections
import contextlib
import json
import pathlib
import random
import re
import resource
import shutil
import sys
import time

import numpy as np
import tiny
from processes import Run, fork_server

STEPS = 30


class Trials:
  """Runs of the command line on a set of tiny images.

  Attributes:
    folder: for all that they write.
    rng: what is random.
    rows: (fault, tried, Counter of how they ended).
  """

  def __init__(self, folder, seed=0):
    self.folder = pathlib.Path(folder)
    self.context = fork_server()
    self.environment = {
      "XDG_CACHE_HOME": str(self.folder / "cache"),
      "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
    }
    self.rng = random.Random(seed)
    self.rows = []
    data = self.folder / "tiny.npz"
    tiny.write_npz(data)
    self.config = tiny.config("pretrain", "vit", f"npz:{data}")
    self.config.update(epochs=STEPS // 3, evaluate_every_epochs=5)
    self.whole = self.folder / "whole"
    code, text = self.run(self.whole)
    assert code == 0, text
    self.expected = self.result(self.whole)

  def start(self, workdir, limits=None, **changes):
    """A `Run` of the command line."""
    flags = tiny.flags(self.config, workdir, **changes)
    return Run(self.context, flags, environment=self.environment, limits=limits)

  def run(self, workdir, limits=None, **changes):
    """Its exit status, and what it says."""
    return self.start(workdir, limits, **changes).wait()

  def result(self, workdir):
    """What of a result has to be the same for the same run."""
    result = json.loads((workdir / "result.json").read_text())
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    return {k: result[k] for k in ("state_sha256", "knn", "step")}, steps

  def judge(self, workdir, code, text):
    """How a run ended: "right", "said", or what is wrong with it."""
    if "Traceback" in text or code == "hang" or code not in (0, 2):
      return f"wrong: status {code}: {text[-1500:]}"
    if list(workdir.rglob("*.tmp")) or list(workdir.rglob("*checkpoint-tmp*")):
      return "wrong: something half-written is left"
    if code == 2:
      last = text.strip().splitlines()[-1]
      return "said" if last.startswith("error: ") else f"wrong: {text[-500:]}"
    found, steps = self.result(workdir)
    if found != self.expected[0]:
      return f"wrong: {found} and not {self.expected[0]}"
    if steps != self.expected[1] and "warning" not in text:
      return f"wrong: {len(steps)} lines, and not a word"
    return "right"

  def add(self, fault, outcomes):
    counted = collections.Counter(
      "wrong" if x.startswith("wrong") else x for x in outcomes
    )
    self.rows.append((fault, len(outcomes), counted))
    for wrong in (x for x in outcomes if x.startswith("wrong")):
      print(f"{fault}: {wrong}", file=sys.stderr)

  # Kills.

  def kills(self, count):
    """SIGKILLs at any time, of which a part hits a checkpoint's writing."""
    outcomes, killed, number = [], collections.Counter(), 0
    while sum(killed.values()) < count:
      workdir = self.folder / f"killed_{number}"
      number += 1
      for _ in range(self.rng.randint(2, 6)):
        at_write = self.rng.random() < 0.5
        kind = self.kill_one(workdir, at_write)
        if kind is None:
          break
        killed[kind] += 1
      code, text = self.run(workdir)
      outcomes.append(self.judge(workdir, code, text))
      shutil.rmtree(workdir)
    writing = killed["while a checkpoint was written"]
    total = sum(killed.values())
    name = f"SIGKILL, {total} times in {number} runs, {writing} of them while"
    self.add(f"{name} a checkpoint was written", outcomes)
    return killed

  def kill_one(self, workdir, at_write):
    """Kills a run; what it was doing, or None where it had ended before."""
    run = self.start(workdir)
    until = time.monotonic() + self.rng.uniform(0.5, 8)
    parts = workdir / "checkpoints"

    def writing():
      with contextlib.suppress(OSError):
        return any("tmp" in x.name for x in parts.iterdir())
      return False

    while run.alive() and time.monotonic() < until + 20 * at_write:
      if at_write and time.monotonic() > until - 4 and writing():
        break
      time.sleep(0.0005)
    if not run.alive():
      run.wait()
      return None
    run.kill()
    return "while a checkpoint was written" if writing() else "elsewhere"

  # Damage.

  def half(self):
    """The workdir of a run that has stopped in the middle."""
    half = self.folder / "half"
    if not half.exists():
      code, text = self.run(half, max_steps=STEPS // 2)
      assert code == 0, text
    return half

  def damage(self, count):
    """Flips a bit in, or cuts off, any file of a workdir that goes on."""
    half = self.half()
    files = sorted(p for p in half.rglob("*") if p.is_file())
    outcomes = collections.defaultdict(list)
    for number in range(count):
      workdir = self.folder / f"damaged_{number}"
      shutil.copytree(half, workdir)
      name = files[number % len(files)].relative_to(half)
      how = self.rng.choice(["a bit is flipped", "cut off"])
      spoil(workdir / name, how, self.rng)
      code, text = self.run(workdir)
      kind = "a checkpoint" if name.parts[0] == "checkpoints" else name.name
      outcomes[kind, how].append(self.judge(workdir, code, text))
      shutil.rmtree(workdir)
    for (kind, how), found in sorted(outcomes.items()):
      self.add(f"{kind}: {how}", found)

  def missing(self):
    """Removes what a workdir that goes on is made of."""
    half = self.half()
    for name in (
      "config.json",
      "dataset.json",
      "metrics.jsonl",
      "result.json",
      "command.txt",
      "checkpoints",
      "checkpoints/15",
      "checkpoints/15/_CHECKPOINT_METADATA",
      "checkpoints/15/state",
      "checkpoints/15/state/manifest.ocdbt",
      "checkpoints/15/state/_METADATA",
    ):
      workdir = self.folder / "missing"
      shutil.copytree(half, workdir)
      path = workdir / name
      shutil.rmtree(path) if path.is_dir() else path.unlink()
      code, text = self.run(workdir)
      self.add(f"{name} is deleted", [self.judge(workdir, code, text)])
      shutil.rmtree(workdir)

  # Files that cannot be written.

  def writes(self, count):
    """A disk that is full after so many bytes of a file; then there is room."""
    outcomes = []
    for _ in range(count):
      workdir = self.folder / "full"
      limit = self.rng.randint(200, 12000)
      code, text = self.run(workdir, {resource.RLIMIT_FSIZE: limit})
      first = self.judge(workdir, code, text)
      code, text = self.run(workdir)
      after = self.judge(workdir, code, text)
      outcomes.append(first if first.startswith("wrong") else after)
      shutil.rmtree(workdir, ignore_errors=True)
    self.add("no room for a file, and later there is", outcomes)

  def two_at_once(self):
    """A second process on a workdir."""
    workdir = self.folder / "two"
    first = self.start(workdir)
    while not (workdir / "checkpoints").exists() and first.alive():
      time.sleep(0.01)
    code, text = self.run(workdir)
    refused = code == 2 and "another process is training" in text
    outcome = "said" if refused else f"wrong: {text[-500:]}"
    self.add("a second process on a workdir", [outcome])
    ended = self.judge(workdir, *first.wait())
    self.add("the first process, meanwhile", [ended])

  def long_run(self, steps):
    """A run of many steps.

    Returns:
      Memory over the last thousand steps, over that of the second thousand; and
      how many files there are at the end.
    """
    workdir = self.folder / "long"
    run = self.start(
      workdir,
      epochs=-(-steps // 3),
      evaluate_every_epochs=steps,
      checkpoint_every_steps=200,
      log_every_steps=20,
      steps_per_dispatch=20,
    )
    status = pathlib.Path(f"/proc/{run.process.pid}/status")
    sizes = []  # (step, kilobytes)
    lines = workdir / "metrics.jsonl"
    while run.alive():
      with contextlib.suppress(OSError, IndexError, TypeError, ValueError):
        kilobytes = int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])
        last = lines.read_text().splitlines()[-1]
        sizes.append((json.loads(last)["step"], kilobytes))
      time.sleep(0.2)
    code, text = run.wait()
    assert code == 0, text
    early, late = (
      np.median([x for step, x in sizes if first <= step < first + 1000])
      for first in (1000, steps - 1000)
    )
    self.add(
      f"{steps} steps: memory {late / early:.3f} of that at the beginning",
      ["right"],
    )
    files = [p for p in workdir.rglob("*") if p.is_file()]
    return late / early, len(files)


def spoil(path, how, rng):
  """Flips a bit of a file, or cuts it off."""
  data = bytearray(path.read_bytes())
  if how == "cut off" or not data:
    path.write_bytes(data[: rng.randrange(len(data) or 1)])
    return
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(data)
