"""Tells what images show: the likeliest classes of each, by a classifier.

  python -m vit_ssl_jax.predict --workdir=B image.jpg
  python -m vit_ssl_jax.predict --workdir=B folder/ other/*.png --top=3
  python -m vit_ssl_jax.predict --init_from=FILE --json folder/ > found.jsonl

FILE is anything that was exported from a fine-tuning, or the PyTorch weights of
the paper's authors. What was exported here says itself what it is; else --arch
and --dataset do, and the model has the paper's sizes.

An IMAGE is a JPEG, PNG, WebP, BMP or GIF file, or a folder, of which all such
files are taken, at any depth and in the order of their paths, but for hidden
ones. Images are brought to the model's size as the run's own were.

Of each image there is a line: its path, and classes with their probabilities,
the likeliest first. With --json it is one of these instead:

  {"image": "cat.jpg", "classes": [{"class": "cat", "probability": 0.931}, ...]}
  {"image": "bad.jpg", "error": "empty"}

An image that cannot be read is named on standard error; the others are still
predicted, and the exit status is 1.
"""

import json
import os
import signal
import stat
import sys

import numpy as np

from vit_ssl_jax import cli, evaluate
from vit_ssl_jax.cli import Parser, UserError, reporting_errors, set_up
from vit_ssl_jax.data import folder, pixels
from vit_ssl_jax.evaluate.classifier import add_classifier, read_classifier
from vit_ssl_jax.parallel import mesh as sharding


def main(argv=None):
  """Runs the command line.

  A user's mistake costs one sentence and status 2, a broken image status 1.
  """
  args = parse(argv)
  # A path need not be text, and a terminal need not know all letters.
  sys.stdout.reconfigure(errors="backslashreplace")
  with reporting_errors():
    set_up()
    try:
      whole = predict_all(args)
    except BrokenPipeError:
      # Who reads has seen enough. Else Python would complain at its end.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(128 + signal.SIGPIPE)
  if not whole:
    sys.exit(1)


def parse(argv):
  parser = Parser(
    prog="python -m vit_ssl_jax.predict",
    usage="%(prog)s --workdir=B | --init_from=FILE [options] IMAGE ...",
    description=__doc__,
  )
  parser.add_argument(
    "images", nargs="+", metavar="IMAGE", help="images, and folders of images"
  )
  add_classifier(parser)
  parser.add_argument(
    "--top",
    type=int,
    default=5,
    metavar="K",
    help="classes of each image, at most; %(default)s if left out",
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    default=256,
    metavar="B",
    help="images at a time; %(default)s if left out",
  )
  parser.add_argument(
    "--json", action="store_true", help="print a line of JSON for each image"
  )
  # Images may come before options, between them and after them.
  return parser.parse_intermixed_args(argv)


def predict_all(args):
  """Checks everything, then prints image by image.

  Returns:
    Whether all images could be read.
  """
  check(args)
  files = [file for path in args.images for file in images_at(path)]
  run = read_classifier(args)
  print_line = json_line if args.json else make_text_line(files, run.classes)
  broken = 0
  with pixels.progress_bar(len(files), "predicting", shows_bar()) as bar:
    for file, probabilities, why in predictions(run, files, args.batch_size):
      best = likeliest(probabilities, run.classes, args.top)
      if why:
        broken += 1
        cli.say(f"{file}: {why}")
      if args.json or not why:
        print(print_line(file, best, why), flush=True)
      bar.update()
  if broken:
    cli.say(f"{broken:,} of {len(files):,} images could not be read")
  return not broken


def check(args):
  """Raises a UserError where the options make no sense."""
  for key in ("top", "batch_size"):
    if getattr(args, key) < 1:
      raise UserError(f"--{key}={getattr(args, key)} has to be at least 1")


def images_at(path):
  """The paths of a folder's images, sorted; of a file its own.

  Raises:
    UserError: there is nothing, a folder without images, or one that cannot be
      read.
  """
  if not os.path.exists(path):
    raise UserError(f"{path}: there is no such image or folder")
  if not os.path.isdir(path):
    return [path]
  try:
    names = sorted(name for name, *_ in folder.walk(path))
  except OSError as error:
    raise UserError(
      f"{error.filename} cannot be read: {error.strerror}"
    ) from error
  if not names:
    raise UserError(f"{path} has no images: no JPEG, PNG, WebP, BMP or GIF")
  return [os.path.join(path, name) for name in names]


def predictions(run, files, batch_size=256):
  """Decodes and predicts batch by batch, so that memory does not grow.

  Args:
    run: a `classifiers.Classifier`.
    files: N images, as `pixels.decode` takes them.
    batch_size: how many at a time; with fewer images their number.

  Yields:
    (file, probabilities (C,) float64, "") for each image in order; for one
    that is broken (file, None, why).
  """
  shape = min(batch_size, len(files))  # of which all batches are
  placed = sharding.batch_sharding(run.mesh)
  size, resize = run.config.model.image_size, run.config.resize
  for start in range(0, len(files), batch_size):
    batch = files[start : start + batch_size]
    images, broken = decode(batch, size, resize)
    unknown = np.zeros(len(batch), int)
    outputs = evaluate.extract(run.predict, images, unknown, shape, placed)
    outputs = outputs.astype(np.float64)
    if not run.gives_probabilities:
      outputs = softmax(outputs)
    for row, file in enumerate(batch):
      why = broken.get(row, "")
      yield file, None if why else outputs[row], why


def decode(files, size, resize):
  """Images, (N, S, S, 3) uint8, and a dict of row -> why it is broken."""
  images = np.zeros((len(files), size, size, 3), np.uint8)
  try:
    _, broken = pixels.decode_all(
      images, files, resize, label="", progress=False
    )
  except UserError:  # a file cannot be read; the others can
    broken = {}
    for row, file in enumerate(files):
      try:
        images[row] = pixels.decode(file, size, resize)
      except (pixels.BrokenImageError, UserError) as error:
        broken[row] = str(error).removeprefix(f"{file} ").rstrip(".")
  return images, broken


def softmax(logits):
  """(B, C) -> (B, C)."""
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def likeliest(probabilities, classes, top):
  """At most `top` pairs of a class and its probability; of None, none."""
  if probabilities is None:
    return []
  order = np.argsort(-probabilities, kind="stable")[:top]
  return [(classes[i], float(probabilities[i])) for i in order]


def json_line(file, best, why):
  """What is known of an image, in JSON; as precise as a float32."""
  if why:
    return json.dumps({"image": file, "error": why})
  pairs = [
    {"class": name, "probability": float(f"{p:.6g}")} for name, p in best
  ]
  return json.dumps({"image": file, "classes": pairs})


def make_text_line(files, classes):
  """Makes (file, pairs of a class and its probability, why) -> a line.

  The lines for `files` are aligned, whichever of `classes` they show.
  """
  width = max(map(len, files))
  shown = {name: " ".join(name.split()) for name in classes}  # on one line
  name_width = max(map(len, shown.values()))

  def line(file, best, _):
    cells = [f"{shown[name]:{name_width}} {100 * p:5.1f} %" for name, p in best]
    return "  ".join([file.ljust(width), *cells])

  return line


def shows_bar():
  """Whether a progress bar is of use: results go to a file, and someone looks.

  On a terminal the results themselves are progress, and behind a pipe whatever
  is there may print to the terminal, too.
  """
  return sys.stderr.isatty() and stat.S_ISREG(
    os.fstat(sys.stdout.fileno()).st_mode
  )


if __name__ == "__main__":
  main()
