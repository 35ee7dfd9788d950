"""Training health checks: collapse and loss spikes."""

import math
import statistics

# The share of a run after which its signal is judged.
JUDGED_AFTER = 0.1
FEW_STEPS = 10  # an epoch
# Percent by which a k-NN has to be above the untrained network's.
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
    config: the run's.
    steps_per_epoch: the run's.
    lines, evaluated: the recent and the evaluated lines of metrics.
    baselines: figures in percent before training.
    share: fraction of the run that is done.
  """
  if len(lines) < 50 or lines[0]["step"] < steps_per_epoch:
    return None
  out_dim, t = config.head.out_dim, config.teacher
  kind = collapse(lines, out_dim)
  if kind == "one-hot":
    return (
      "the teacher's outputs have collapsed to one (their entropy is 0), and"
      " nothing is being learnt; what helps: teacher.centering=sinkhorn, higher"
      " teacher temperatures, a smaller optim.learning_rate; see"
      " docs/training.md, Small sets"
    )
  symptom = None
  if kind == "uniform":
    symptom = (
      "the teacher's outputs have collapsed to uniform (the loss stays at"
      f" ln {out_dim} = {math.log(out_dim):.4f})"
    )
  elif share >= JUDGED_AFTER and teacher_signal_vanishes(
    out_dim, baselines.get("knn_untrained", 0.0), evaluated
  ):
    first, last = (evaluated[i]["signal"] for i in (0, -1))
    symptom = (
      "the teacher's signal is dying: its targets differ less and less from"
      f" image to image ({first:.3f}, then {last:.3f} nats)"
    )
  if not symptom:
    return None
  helps = []
  if t.centering != "sinkhorn":
    helps.append("teacher.centering=sinkhorn")
  if t.temperature > 0.02:
    helps.append(
      "teacher.warmup_temperature and teacher.temperature of 0.02 instead of"
      f" {t.warmup_temperature:g} and {t.temperature:g}"
    )
  if steps_per_epoch < FEW_STEPS:
    helps.append(
      f"a batch_size below {config.batch_size}, for there are only"
      f" {steps_per_epoch} steps an epoch"
    )
  helps += [
    "larger crops (views.global_scale, views.local_scale)",
    "less colour jitter",
  ]
  return (
    f"{symptom}, and nothing is being learnt; what helps: {', '.join(helps)};"
    " see docs/training.md, Small sets"
  )


def collapse(lines, outputs):
  """The kind of a teacher's collapse, or None.

  Args:
    lines: the last steps' metrics: "loss", "teacher_entropy", "teacher_kl".
    outputs: K, the number of outputs.

  Returns:
    "uniform" where loss and entropy are at ln K in every line, so that the
    targets say nothing; "one-hot" where the entropy is at 0 and no target
    differs from the batch's mean; else None.
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
  """A warning if all recent losses are far above the usual ones, or None.

  The smallest of the last ten is compared with the upper quartile of those
  before: half of the batches are mixed in fine-tuning, and these have a higher
  loss, so that a few steps' median says nothing.

  Args:
    lines: metrics of the last steps.
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
