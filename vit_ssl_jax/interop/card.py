"""Model cards for the Hugging Face Hub."""

import math

# Figures of result.json, in percent.
FIGURES = {
  "top1": "top-1 on the test images after the last step",
  "best_top1_on_test": "best of all epochs, chosen on the test images",
  "top1_at_best_val": "top-1 on the test images at the best epoch by validation"
  " images",
  "knn": "k-NN on the features, test images, last epoch",
}


def text(about, parameters, command, usage):
  """Returns a model card in Markdown; `about` is of `metadata.KEYS`."""
  config = about["config"]
  sizes = {k: v for k, v in about["model"].items() if k != "name"}
  task = "classification" if sizes["num_classes"] else "feature-extraction"
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
    data(about),
    *classes(about["classes"] if sizes["num_classes"] else []),
    "## Recipe",
    f"{config['epochs']} epochs at batch {config['batch_size']}, seed"
    f" {config['seed']}:\n\n```\n{command}\n```",
    f"Sizes: {', '.join(f'{k} {v}' for k, v in sizes.items())}.",
    "## Use",
    f"```python\n{usage}\n```",
  ]
  return "\n\n".join(parts) + "\n"


def accuracy(about):
  """Returns a table of the measured figures."""
  result = about.get("result", {})
  rows = [
    f"| {meaning} | {result[key]:.2f} % |"
    for key, meaning in FIGURES.items()
    if isinstance(result.get(key), float)
  ]
  if not rows:
    return f"Not measured: training had not ended at step {about['step']}."
  return "\n".join(["| measured | |", "|---|---|", *rows])


def data(about):
  """Describes the data set, its splits and its statistics."""
  counts = [f"{n:,} {split}" for split, n in about["images"].items() if n]
  size = about["model"]["image_size"]
  mean, std = (
    ", ".join(f"{x:.4f}" if math.isfinite(x) else "?" for x in about[key])
    for key in ("mean", "std")
  )
  return (
    f"{about['dataset']}: {', '.join(counts) or 'unknown numbers of'} images,"
    f" RGB, resized to {size} x {size} pixels"
    f" ({about['config'].get('resize', 'squash')}), with mean {mean} and"
    f" standard deviation {std} of the channels in [0, 1]."
  )


def classes(names):
  """Yields a sentence with the first 20 class names, if there are any."""
  few = ", ".join(" ".join(name.split()) for name in names[:20])
  if names:
    yield f"{len(names)} classes: {few}{', ...' if len(names) > 20 else ''}."
