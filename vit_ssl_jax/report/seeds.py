"""Mean accuracy over seeds, confidence intervals, gains paired by seed."""

import numpy as np
import scipy.stats

from vit_ssl_jax.recipes import keys, schema

# Keys that titles name, that differ between repetitions, or that do not change
# a run's result.
NOT_COMPARED = {
  *("model.name", "dataset", "data_fraction", "init_from"),
  *("seed", "split_seed", "evaluate_every_epochs"),
  *keys.RESUMABLE,
} - {"max_steps"}
SOURCES = ("from scratch", "pretrained")
NOTE = (
  "The 95 % confidence interval of the mean over seeds (Student's t), drawn as"
  " a line on its bar, assumes that seeds scatter normally. It covers nothing"
  " but them and is wide where there are few."
)
PAIRED = (
  "The gain is pretrained minus from scratch, paired by seed, images and"
  " recipe; its interval is that of the mean difference."
)


def interval(values):
  """95 % confidence interval of a mean (Student's t); None of one value."""
  if len(values) < 2:
    return None
  half = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1)
  return float(np.mean(values) - half), float(np.mean(values) + half)


def group(runs):
  """Groups fine-tunings of `build.read_run` that differ by their seed alone.

  Returns:
    title -> source, one of SOURCES -> seed -> top-1. A run that repeats
    another's seed is a group of its own.
  """
  configs = [schema.flat(run["config"]) for run in runs]
  groups = {}
  for run, config in zip(runs, configs, strict=True):
    title = group_title(config, configs)
    source = SOURCES[bool(config.get("init_from"))]
    seed = config["seed"], config.get("split_seed", 0)
    if seed in groups.get(title, {}).get(source, {}):
      title += f" ({run['title']})"
    top1 = groups.setdefault(title, {}).setdefault(source, {})
    top1[seed] = run["result"]["top1"]
  return groups


def group_title(config, configs):
  """Names a run by the keys in which it differs from others of its task."""
  task = ("model.name", "dataset", "data_fraction")
  title = config["model.name"]
  if len({x["dataset"] for x in configs}) > 1:
    title += f", {config['dataset']}"
  title += f", {100 * config['data_fraction']:.3g} % of the images"
  peers = [x for x in configs if all(x[key] == config[key] for key in task)]
  for key in sorted(set(config) - NOT_COMPARED):
    if any(x.get(key) != config[key] for x in peers):
      title += f", {key} {config[key]}"
  return title


def accuracies(groups):
  """Title and source -> top-1 of each seed."""
  return {
    f"{title}, {source}": list(by_source[source].values())
    for title, by_source in groups.items()
    for source in SOURCES
    if source in by_source
  }


def gains(groups):
  """Title -> gain of pretraining for each seed that both sources have."""
  differences = {}
  for title, by_source in groups.items():
    scratch, pretrained = (by_source.get(x, {}) for x in SOURCES)
    both = [seed for seed in scratch if seed in pretrained]
    if both:
      differences[title] = [pretrained[x] - scratch[x] for x in both]
  return differences


def rows(values_of, sign=""):
  """Yields (title, seeds, mean, standard deviation, interval) for a table."""
  for title, values in values_of.items():
    mean, spread, bounds = f"{np.mean(values):{sign}.2f}", None, None
    if ends := interval(values):
      spread = float(np.std(values, ddof=1))
      bounds = f"{ends[0]:{sign}.2f} to {ends[1]:{sign}.2f}"
    yield title, len(values), mean, spread, bounds
