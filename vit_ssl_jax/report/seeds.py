"""Accuracy side by side: means over seeds, and how sure they are."""

import math

import numpy as np
import scipy.special

from vit_ssl_jax.recipes import schema
from vit_ssl_jax.run import workdir as workdirs

# Keys that a run's title names, that tell repetitions apart, or that change how
# a run goes but not what comes out.
NOT_COMPARED = {
  *("model.name", "dataset", "data_fraction", "init_from"),
  *("seed", "split_seed", "evaluate_every_epochs"),
  *workdirs.MAY_CHANGE,
} - {"max_steps"}
SOURCES = ("from scratch", "pretrained")
NOTE = (
  "The 95 % interval is the confidence interval of the mean over seeds"
  " (Student's t), drawn as a line on its bar. It assumes that seeds scatter"
  " normally, covers nothing but them, and is wide where there are only a few."
)
PAIRED = (
  "The gain is pretrained minus from scratch, of the runs with the same seed,"
  " images and recipe. Its interval is that of the mean of these differences"
  " (paired)."
)


def interval(values):
  """The 95 % confidence interval of a mean, by Student's t.

  Returns:
    (low, high), or None of fewer than two values.
  """
  count = len(values)
  if count < 2:
    return None
  mean, spread = np.mean(values), np.std(values, ddof=1)
  half = scipy.special.stdtrit(count - 1, 0.975) * spread / math.sqrt(count)
  return float(mean - half), float(mean + half)


def groups(runs):
  """Puts fine-tunings together that differ by their seed alone.

  Args:
    runs: dicts with "title", "config" and "result".

  Returns:
    what (an architecture, a share of images, ...) -> source, one of SOURCES ->
    seed -> top-1. A run that repeats another's seed stands alone.
  """
  configs = [schema.flat(run["config"]) for run in runs]
  several = len({config["dataset"] for config in configs}) > 1
  found = {}
  for run, config in zip(runs, configs, strict=True):
    what = config["model.name"]
    what += f", {config['dataset']}" if several else ""
    what += f", {100 * config['data_fraction']:.3g} % of the images"
    like = [x for x in configs if same_task(x, config)]
    for key in sorted(set(config) - NOT_COMPARED):
      if any(x.get(key) != config[key] for x in like):
        what += f", {key} {config[key]}"
    source = SOURCES[bool(config.get("init_from"))]
    seed = config["seed"], config.get("split_seed", 0)
    if seed in found.get(what, {}).get(source, {}):
      what += f" ({run['title']})"
    by_source = found.setdefault(what, {})
    by_source.setdefault(source, {})[seed] = run["result"]["top1"]
  return found


def same_task(config, other):
  keys = ("model.name", "dataset", "data_fraction")
  return all(config[key] == other[key] for key in keys)


def accuracies(found):
  """title -> top-1 of the seeds, of each of `groups`."""
  return {
    f"{what}, {source}": list(by_source[source].values())
    for what, by_source in found.items()
    for source in SOURCES
    if source in by_source
  }


def gains(found):
  """what -> differences of the seeds that both sources have."""
  differences = {}
  for what, by_source in found.items():
    scratch, pretrained = (by_source.get(x, {}) for x in SOURCES)
    both = [seed for seed in scratch if seed in pretrained]
    if both:
      differences[what] = [pretrained[x] - scratch[x] for x in both]
  return differences


def rows(values, sign=""):
  """(title, seeds, mean, standard deviation, interval) as a table shows them.

  Args:
    values: title -> a number for each seed.
    sign: "+" shows it.
  """
  for title, some in values.items():
    bounds = interval(some)
    yield (
      title,
      len(some),
      f"{np.mean(some):{sign}.2f}",
      float(np.std(some, ddof=1)) if bounds else None,
      f"{bounds[0]:{sign}.2f} to {bounds[1]:{sign}.2f}" if bounds else None,
    )
