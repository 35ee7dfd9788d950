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
import pathlib
import signal
import stat
import sys

import numpy as np
import scipy.special

from vit_ssl_jax import cli, evaluate
from vit_ssl_jax.cli import Parser, configure, reporting_errors
from vit_ssl_jax.data import folder, pixels
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate.classifier import add_classifier, read_classifier


def main(argv=None):
  """Runs the command line.

  A user's mistake costs one sentence and status 2, a broken image status 1.
  """
  args = parse(argv)
  # A path need not be text, and a terminal need not know all letters.
  sys.stdout.reconfigure(errors="backslashreplace")
  with reporting_errors():
    configure()
    try:
      broken = predict_all(args)
    except BrokenPipeError:
      # The reader has seen enough; without this Python would complain at exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(128 + signal.SIGPIPE)
  if broken:
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
  add_classifier(parser, batch_size=256)
  parser.add_argument(
    "--top",
    type=int,
    default=5,
    metavar="K",
    help="classes of each image, at most; %(default)s if left out",
  )
  parser.add_argument(
    "--json", action="store_true", help="print a line of JSON for each image"
  )
  # Images may come before options, between them and after them.
  return parser.parse_intermixed_args(argv)


def predict_all(args):
  """Checks everything, then prints image by image.

  Returns:
    How many images could not be read.
  """
  if args.top < 1:
    raise UserError(f"--top={args.top} has to be at least 1")
  files = [file for path in args.images for file in images_at(path)]
  classifier = read_classifier(args)
  classes, broken = classifier.classes, 0
  text_line = make_text_line(files, classes)
  with cli.progress_bar(len(files), "image", disable=not shows_bar()) as bar:
    for file, shares, why in predictions(classifier, files, args.batch_size):
      if why:
        broken += 1
        cli.log(f"{file}: {why}")
      best = [] if why else likeliest(shares, classes, args.top)
      if args.json:
        print(json_line(file, best, why), flush=True)
      elif not why:
        print(text_line(file, best), flush=True)
      bar.update()
  if broken:
    cli.log(f"{broken:,} of {len(files):,} images could not be read")
  return broken


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
  return [os.path.join(path, name) for name in folder.names(path)]


def predictions(classifier, files, batch_size=256):
  """Decodes and predicts batch by batch, so that memory does not grow.

  Args:
    classifier: a `Classifier`.
    files: paths of N images.
    batch_size: how many at a time; with fewer images their number.

  Yields:
    (file, probabilities (C,) float64, "") for each image in order; for one
    that is broken (file, None, why).
  """
  size, resize = (classifier.data[key] for key in ("image_size", "resize"))
  shape = min(batch_size, len(files))  # all batches have it
  for start in range(0, len(files), batch_size):
    batch = files[start : start + batch_size]
    images, broken = decode(batch, size, resize)
    logits = evaluate.extract(
      classifier.predict, images, shape, classifier.sharding
    )
    shares = scipy.special.softmax(logits.astype(np.float64), axis=-1)
    for row, file in enumerate(batch):
      why = broken.get(row, "")
      yield file, None if why else shares[row], why


def decode(files, size, resize):
  """Images, (N, S, S, 3) uint8, and a dict of row -> why it is broken."""
  images, unreadable = np.zeros((len(files), size, size, 3), np.uint8), {}

  def contents():
    for row, file in enumerate(files):
      try:
        yield pathlib.Path(file).read_bytes()
      except OSError as error:
        unreadable[row] = f"cannot be read: {error.strerror}"
        yield b""

  _, broken = pixels.decode_all(
    images, contents(), resize, label="", progress=False
  )
  return images, broken | unreadable


def likeliest(probabilities, classes, top):
  """At most `top` pairs of a class and its probability."""
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
  """Makes (file, pairs of a class and its probability) -> a line.

  The lines for `files` are aligned, whichever of `classes` they show.
  """
  width = max(map(len, files))
  titles = {name: " ".join(name.split()) for name in classes}  # on one line
  longest = max(map(len, titles.values()))

  def line(file, best):
    cells = [f"{titles[x]:{longest}} {100 * p:5.1f} %" for x, p in best]
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
