"""Predicts the most probable classes of images.

  python -m vit_ssl_jax.predict --workdir=B image.jpg
  python -m vit_ssl_jax.predict --workdir=B folder/ other/*.png --top=3
  python -m vit_ssl_jax.predict --init_from=FILE --json folder/ > classes.jsonl

FILE is exported weights of a fine-tuning, or PyTorch weights of the paper's
authors. An export describes itself; other files need --arch and --dataset, and
have the paper's sizes.

An IMAGE is a JPEG, PNG, WebP, BMP or GIF file, or a folder: all such files in
it, at any depth, ordered by path, without hidden ones. Images are resized as
the run's own were.

Prints a line for each image: its path, and classes with probabilities, the most
probable first; with --json one of

  {"image": "cat.jpg", "classes": [{"class": "cat", "probability": 0.931}, ...]}
  {"image": "bad.jpg", "error": "empty"}

An image that cannot be read is reported on standard error; the others are still
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

from vit_ssl_jax import cli
from vit_ssl_jax.data import folder, pixels
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.evaluate import model


def main(argv=None):
  """Runs the command line."""
  args = parse(argv)
  # Paths may have bytes, and classes letters, that a terminal cannot show.
  sys.stdout.reconfigure(errors="backslashreplace")
  with cli.reporting_errors():
    cli.configure()
    try:
      broken = predict_all(args)
    except BrokenPipeError:
      # The reader, such as `head`, is done; Python would complain at exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(128 + signal.SIGPIPE)
  if broken:
    sys.exit(1)


def parse(argv):
  parser = cli.Parser(
    prog="python -m vit_ssl_jax.predict",
    usage="%(prog)s --workdir=B | --init_from=FILE [options] IMAGE ...",
    description=__doc__,
  )
  option = parser.add_argument
  option("images", nargs="+", metavar="IMAGE", help="images and folders")
  model.add_arguments(parser, batch_size=256)
  most = "classes of each image, at most; default: %(default)s"
  option("--top", type=int, default=5, metavar="K", help=most)
  option("--json", action="store_true", help="print a JSON object per image")
  # Images may stand before, between and after options.
  return parser.parse_intermixed_args(argv)


def predict_all(args):
  """Checks everything, then prints image by image; counts the broken ones."""
  if args.top < 1:
    raise UserError(f"--top={args.top} must be at least 1")
  files = [file for path in args.images for file in images_at(path)]
  classifier = model.from_arguments(args)
  model.check_classifier(classifier)
  classes, broken = classifier.classes, 0
  text_line = make_text_line(files, classes)
  with cli.progress_bar(len(files), "image", disable=not shows_bar()) as bar:
    for file, probabilities, error in predictions(
      classifier, files, args.batch_size
    ):
      top = [] if error else most_probable(probabilities, classes, args.top)
      if args.json:
        print(json_line(file, top, error), flush=True)
      elif not error:
        print(text_line(file, top), flush=True)
      if error:
        broken += 1
        cli.log(f"{file}: {error}")
      bar.update()
  if broken:
    cli.log(f"{broken:,} of {len(files):,} images could not be read")
  return broken


def images_at(path):
  """Lists the images of a folder, sorted; a file is listed as it is."""
  if not os.path.exists(path):
    raise UserError(f"there is no image or folder {path}")
  if not os.path.isdir(path):
    return [path]
  return [os.path.join(path, name) for name in folder.names(path)]


def predictions(classifier, files, batch_size):
  """Decodes and predicts batch by batch, so that memory does not grow.

  Yields:
    (file, probabilities (C,) float64, "") for each image in order, or (file,
    None, error) where it is broken.
  """
  size, resize = (classifier.data[key] for key in ("image_size", "resize"))
  shape = min(batch_size, len(files))  # the same for all batches
  for start in range(0, len(files), batch_size):
    batch = files[start : start + batch_size]
    images, errors = decode(batch, size, resize)
    logits = classifier.logits(images, shape).astype(np.float64)
    probabilities = scipy.special.softmax(logits, axis=-1)
    for row, file in enumerate(batch):
      error = errors.get(row, "")
      yield file, None if error else probabilities[row], error


def decode(files, size, resize):
  """Decodes to (N, S, S, 3) uint8, and a dict of row -> error."""
  images, unreadable = np.zeros((len(files), size, size, 3), np.uint8), {}

  def contents():
    for row, file in enumerate(files):
      try:
        yield pathlib.Path(file).read_bytes()
      except OSError as e:
        unreadable[row] = f"cannot be read: {e.strerror}"
        yield b""

  _, broken = pixels.decode_all(
    images, contents(), resize, label="", progress=False
  )
  return images, broken | unreadable


def most_probable(probabilities, classes, count):
  """At most `count` pairs of a class and its probability."""
  order = np.argsort(-probabilities, kind="stable")[:count]
  return [(classes[i], float(probabilities[i])) for i in order]


def json_line(file, top, error):
  """A JSON object; probabilities are as precise as a float32."""
  if error:
    return json.dumps({"image": file, "error": error})
  pairs = [{"class": x, "probability": float(f"{p:.6g}")} for x, p in top]
  return json.dumps({"image": file, "classes": pairs})


def make_text_line(files, classes):
  """Builds (file, pairs of a class and its probability) -> an aligned line."""
  width = max(map(len, files))
  titles = {name: " ".join(name.split()) for name in classes}  # on one line
  longest = max(map(len, titles.values()))

  def line(file, top):
    cells = [f"{titles[x]:{longest}} {100 * p:5.1f} %" for x, p in top]
    return "  ".join([file.ljust(width), *cells])

  return line


def shows_bar():
  """True where results go to a file and standard error to a terminal.

  On a terminal results are progress themselves, and a pipe's reader may print
  to the terminal too.
  """
  if not sys.stderr.isatty():
    return False
  return stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)


if __name__ == "__main__":
  main()
