"""Training health checks: collapse and loss spikes."""

import math
import statistics

# The share of a run after which its signal is judged.
JUDGED_AFTER = 0.1
FEW_STEPS = 10  # an epoch
# Points by which a k-NN must exceed the untrained network's.
MARGIN = 1.0
# Share of ln K below which a signal is faint. It is 0.02 to 0.05 in runs that
# fail, 0.14 in one that starts slowly, and 0.3 and more in those that learn.
FAINT = 0.05
SPIKE = 1.5  # times the usual loss


def collapse_warning(
  config, steps_per_epoch, lines, evaluated, baselines, share
):
  """A warning with remedies if the teacher has collapsed, or None.

  Args:
    config, steps_per_epoch: the run's.
    lines, evaluated: the recent and the evaluated lines of metrics.
    baselines: figures in percent before training.
    share: fraction of the run that is done.
  """
  if len(lines) < 50 or lines[0]["step"] < steps_per_epoch:
    return None
  K, untrained = config.head.out_dim, baselines.get("knn_untrained", 0.0)
  helps = remedies(config, steps_per_epoch)
  kind = collapse(lines, K)
  if kind == "one-hot":
    symptom = "the teacher's outputs have collapsed to one (entropy 0)"
    helps = [
      "teacher.centering=sinkhorn",
      "higher teacher temperatures",
      "a smaller optim.learning_rate",
    ]
  elif kind == "uniform":
    symptom = (
      "the teacher's outputs have collapsed to uniform (the loss stays at"
      f" ln {K} = {math.log(K):.4f})"
    )
  elif share >= JUDGED_AFTER and teacher_signal_vanishes(
    K, untrained, evaluated
  ):
    first, last = (evaluated[i]["signal"] for i in (0, -1))
    symptom = (
      "the teacher's targets differ less and less between images"
      f" ({first:.3f}, then {last:.3f} nats)"
    )
  else:
    return None
  return (
    f"{symptom}: training makes no progress; try {', '.join(helps)}; see"
    " docs/training.md, Small sets"
  )


def remedies(config, steps_per_epoch):
  """Changes of the config that keep a teacher's signal alive."""
  t, helps = config.teacher, []
  if t.centering != "sinkhorn":
    helps.append("teacher.centering=sinkhorn")
  if t.temperature > 0.02:
    helps.append(
      "teacher.warmup_temperature and teacher.temperature of 0.02 instead of"
      f" {t.warmup_temperature:g} and {t.temperature:g}"
    )
  if steps_per_epoch < FEW_STEPS:
    helps.append(
      f"a batch_size below {config.batch_size} (there are only"
      f" {steps_per_epoch} steps an epoch)"
    )
  return [
    *helps,
    "larger crops (views.global_scale, views.local_scale)",
    "less colour jitter",
  ]


def collapse(lines, outputs):
  """The kind of a teacher's collapse: "uniform", "one-hot" or None.

  Uniform: loss and entropy are ln K in every line. One-hot: the entropy is 0,
  and no target differs from the batch's mean.
  """
  top = math.log(outputs)

  def near(name, value):
    return all(abs(line[name] - value) < 1e-3 * top for line in lines)

  if near("loss", top) and near("teacher_entropy", top):
    return "uniform"
  if near("teacher_entropy", 0) and near("teacher_kl", 0):
    return "one-hot"
  return None


def teacher_signal_vanishes(outputs, untrained, evaluated):
  """True if the teacher's targets differ less and less between images.

  Its features must also be no better than the untrained network's. In a run
  that only starts slowly the targets differ by more than `FAINT`.

  Args:
    outputs: K, the number of outputs.
    untrained: k-NN top-1 of the untrained network, in percent.
    evaluated: lines of metrics with "knn" and "signal", the divergence of the
      teacher's targets from their mean at that time.
  """
  if len(evaluated) < 3:
    return False
  first, before, now = (evaluated[i] for i in (0, -2, -1))
  no_better = all(x["knn"] <= untrained + MARGIN for x in (before, now))
  sinks = now["signal"] < min(first["signal"], before["signal"])
  return no_better and sinks and now["signal"] < FAINT * math.log(outputs)


def loss_spike_warning(lines):
  """A warning if all of the last ten losses are far above the usual ones.

  Mixup and CutMix, of half of the batches, raise the loss: a median of few
  steps would often exceed the usual one.
  """
  if len(lines) < 100:
    return None
  values = [line["loss"] for line in lines]
  *_, usual = statistics.quantiles(values[:-10], n=4)
  if min(values[-10:]) <= SPIKE * usual:
    return None
  return (
    "the loss has jumped and stays high; if it does not come down again, a"
    " lower optim.learning_rate, a longer optim.warmup_epochs or dtype=float32"
    " may help"
  )
