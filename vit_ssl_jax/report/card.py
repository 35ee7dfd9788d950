"""A model card: what a model is, what it was trained on, how good it is."""

import math


def text(about, parameters, command, usage):
  """A model card in Markdown, with the head that the Hub reads.

  Args:
    about: what is known of a model, of `provenance.KEYS`.
    parameters: how many it has.
    command: the command that trained it.
    usage: Python code that opens it.

  Returns:
    The text of a README.md.
  """
  count = about["model"]["num_classes"]
  classes = about["classes"] if count else []
  task = "classification" if count else "feature-extraction"
  sizes = {k: v for k, v in about["model"].items() if k != "name"}
  parts = [
    f"---\nlibrary_name: transformers\npipeline_tag: image-{task}\n"
    "tags:\n- vit-ssl-jax\n---",
    f"# {about['architecture']} on {about['dataset']}",
    f"The {about['part']} of a vision transformer with {parameters:,}"
    f" parameters, trained on {about['dataset']} alone by vit-ssl-jax (How to"
    " Train Vision Transformer on Small-scale Datasets?, BMVC 2022,"
    " [arXiv 2210.07240](https://arxiv.org/abs/2210.07240)).",
    "## Accuracy",
    accuracy(about),
    "## Data",
    data(about, classes),
    "## Recipe",
    f"{recipe(about['config'])}:\n\n```\n{command}\n```",
    f"Sizes: {', '.join(f'{k} {v}' for k, v in sizes.items())}.",
    "## Use",
    f"```python\n{usage}\n```",
  ]
  return "\n\n".join(parts) + "\n"


def accuracy(about):
  """What was measured: figures in percent, or that there are none."""
  names = {
    "top1": "top-1 on the test images after the last step",
    "best_top1_on_test": "best of all epochs, chosen on the test images",
    "top1_at_best_val": "top-1 on the test images at the best epoch by"
    " validation images",
    "knn": "nearest neighbours on the features, test images, last epoch",
  }
  result = about.get("result", {})
  rows = [
    f"| {words} | {result[key]:.2f} % |"
    for key, words in names.items()
    if isinstance(result.get(key), float)
  ]
  if not rows:
    return (
      f"None was measured: the training had not ended at step {about['step']}."
    )
  return "\n".join(["| measured | |", "|---|---|", *rows])


def data(about, classes):
  """The set, its parts, its statistics and its classes."""
  counts = [
    f"{count:,} {part}" for part, count in about["images"].items() if count
  ]
  size = about["model"]["image_size"]
  lines = [
    f"{about['dataset']}: {', '.join(counts) or 'unknown numbers of'} images,"
    f" RGB, resized to {size} x {size} pixels"
    f" ({about['config'].get('resize', 'squash')}), with mean"
    f" {rounded(about['mean'])} and standard deviation {rounded(about['std'])}"
    " of the channels in [0, 1]."
  ]
  if classes:
    few = ", ".join(" ".join(name.split()) for name in classes[:20])
    few += ", ..." if len(classes) > 20 else ""
    lines.append(f"{len(classes)} classes: {few}.")
  return "\n\n".join(lines)


def recipe(config):
  """The stage in a few words."""
  start = "self-supervised view prediction"
  if config["stage"] == "finetune":
    start = "supervised training from scratch"
    if config["init_from"]:
      start = f"supervised fine-tuning from {config['init_from']}"
  return (
    f"{start[0].upper()}{start[1:]}, {config['epochs']} epochs at batch"
    f" {config['batch_size']}, seed {config['seed']}"
  )


def rounded(numbers):
  return ", ".join(f"{x:.4f}" if math.isfinite(x) else "?" for x in numbers)
