"""Measures how fast a stage's step is, with and without augmentation.

  python -m vit_ssl_jax.benchmark --arch=vit --stage=pretrain --batch_size=512
  python -m vit_ssl_jax.benchmark --arch=swin --stage=finetune --json
  python -m vit_ssl_jax.benchmark --profile --config.views.local_views=4
  python -m vit_ssl_jax.benchmark --sweep=model.depth=3,6,9
  python -m vit_ssl_jax.benchmark --chips=8,64,512

The step is the one that training makes, by the recipe of --dataset, on random
images that lie on the device. Rounds with and without augmentation, with
batches that are streamed, and of all values of --sweep, take turns; the figures
are medians over the rounds.

  images_per_second    with augmentation
  compile_seconds      of that step, nothing being in JAX's cache
  input_share          how much longer the step is for augmentation, in percent
                       of the step without
  streaming_share      how much longer it is where batches are streamed from the
                       host's memory, in percent of the step with
  model_flops          an image's floating-point operations in matrix products,
                       forwards and backwards, counted in the step's program
  peak_share           those done in a second, in percent of what the devices
                       can do in bfloat16; none where that is not known
  memory_bytes         what the compiled step takes at most, on one device, and
                       temporary_bytes of it beside its arguments and results
  program              of the compiled step: how many instructions a step is
                       (kernels), and of these fusions, matrix products, and
                       copies that stand alone; the bytes that they read and
                       write, loops counted, and XLA's own estimate, which
                       counts a loop once; transposes and conversions from
                       bfloat16 to float32 in its text; the bytes that it
                       gathers and reduces over the devices
  profile              with --profile: where the time of a step goes, by part of
                       the code and by operation, from a trace of three steps.
                       On a CPU what helper threads do for an operation has no
                       name: shares are right on one core (taskset -c 0)

--chips computes, on paper, what a step of each model moves and reduces on so
many TPU chips, and the batch of a chip from which that hides behind the
backward pass. docs/scaling.md explains it.
"""

import ast
import functools
import json
import shlex
import sys

import jax

from vit_ssl_jax.benchmark import measuring, paper, records
from vit_ssl_jax.benchmark.chips import CHIPS
from vit_ssl_jax.cli import Parser, UserError, reporting_errors, set_up
from vit_ssl_jax.main import check_keys
from vit_ssl_jax.report import tables

SETTING = "--config."
IN_SWEEP = (
  "images_per_second", "step_seconds", "input_share", "model_flops",
  "peak_share", "memory_bytes", "compile_seconds",
)  # fmt: skip


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  argv = sys.argv[1:] if argv is None else argv
  args, settings = parse(argv)
  with reporting_errors():
    if args.chips:
      show_paper(args.chips, args.dataset)
      return
    key, values = swept(args.sweep)
    configs = [make_config(args, settings | {key: v}) for v in values] or [
      make_config(args, settings)
    ]
    set_up()
    jax.config.update("jax_enable_compilation_cache", False)
    found = measuring.measure_all(
      configs,
      args.steps,
      args.rounds,
      args.profile or bool(args.trace),
      args.trace,
      args.hlo,
    )
    for figures, value in zip(found, values, strict=bool(values)):
      figures[key] = value
    for figures in found:
      figures["settings"] = settings
    show(found, key)
    if args.out:
      command = f"python -m vit_ssl_jax.benchmark {shlex.join(argv)}"
      records.write(args.out, command, found)
  if args.json:
    print(json.dumps(found if values else found[0]))


def parse(argv):
  parser = Parser(
    prog="python -m vit_ssl_jax.benchmark",
    usage="%(prog)s [--arch=vit] [--stage=pretrain] [options]",
    description=__doc__,
  )
  option = parser.add_argument
  option("--arch", default="vit", choices=["vit", "swin", "cait"])
  option("--stage", default="pretrain", choices=["pretrain", "finetune"])
  option("--dataset", default="cifar10", help="whose recipe; %(default)s")
  option("--batch_size", type=int, default=0, help="global; the recipe's")
  option(
    "--dtype",
    default="auto",
    choices=["auto", "float32", "bfloat16"],
    help="of the model's body; bfloat16 on an accelerator if left out",
  )
  option("--steps", type=int, default=10, help="of a round; %(default)s")
  option("--rounds", type=int, default=5, help="%(default)s if left out")
  option(
    "--sweep",
    default="",
    metavar="KEY=A,B,C",
    help="measures the step with each value of a key of the recipe",
  )
  option(
    "--profile",
    action="store_true",
    help="where the time of a step goes; of a sweep in --out and --json alone",
  )
  option(
    "--trace",
    default="",
    metavar="FOLDER",
    help="keeps the profile's trace, for XProf or Perfetto",
  )
  option(
    "--hlo",
    default="",
    metavar="FILE",
    help="keeps the compiled step's text; of a sweep, the first's",
  )
  option("--out", default="", metavar="FILE", help="keeps the figures as JSON")
  option("--json", action="store_true", help="a last line of JSON, too")
  option(
    "--chips",
    default="",
    metavar="8,64,512",
    help="computes what steps take on so many TPU chips, and measures nothing",
  )
  parser.epilog = "--config.KEY=VALUE changes one of the recipe's values."
  args, rest = parser.parse_known_args(argv)
  settings = {}
  for argument in rest:
    key, equals, value = argument.removeprefix(SETTING).partition("=")
    if not (argument.startswith(SETTING) and equals):
      parser.error(f"unrecognized arguments: {argument}")
    settings[key] = literal(value)
  return args, settings


def literal(text):
  """A value as Python would write it, or else the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def swept(text):
  """KEY=A,B,C -> the key and the values.

  Raises:
    UserError: it is not of that form.
  """
  if not text:
    return "", []
  key, _, listed = text.partition("=")
  values = literal(f"[{listed}]")
  if isinstance(values, str):
    values = listed.split(",")
  if not (key and listed and values):
    raise UserError(f"--sweep={text} has to be like --sweep=model.depth=3,6,9")
  return key, values


def make_config(args, settings):
  """The recipe that the arguments name, with some values changed.

  Raises:
    UserError: an argument makes no sense.
  """
  for key in ("steps", "rounds"):
    if getattr(args, key) < 1:
      raise UserError(f"--{key}={getattr(args, key)} has to be at least 1")
  try:
    recipe = paper.RECIPES[args.stage]
    config = recipe.get_config(f"{args.arch},{args.dataset}")
  except ValueError as e:
    raise UserError(str(e).replace("config's argument", "recipe")) from e
  config.update(dtype=args.dtype, mean=(0.5,) * 3, std=(0.25,) * 3)
  config.batch_size = args.batch_size or config.batch_size
  check_keys([f"{SETTING}{key}=" for key in settings], config)
  for key, value in settings.items():
    *parts, last = key.split(".")
    part = functools.reduce(getattr, parts, config)
    try:
      setattr(part, last, value)
    except TypeError as e:
      raise UserError(
        f"{key}={value!r} is not of the kind of the recipe's {part[last]!r}"
      ) from e
  return config


def show(found, key):
  """Prints the figures as tables."""
  if key:
    rows = [[x[key], *(x[name] for name in IN_SWEEP)] for x in found]
    print(tables.table((key, *IN_SWEEP), rows))
    return
  figures = found[0]
  hidden = ("program", "profile", "rounds", "settings")
  shown = {
    k: v for k, v in figures.items() if v is not None and k not in hidden
  }
  print(tables.table(("benchmark", ""), shown.items()))
  program = dict(figures["program"])
  rows = [
    (x["kind"], x["bytes"], x["times"], x["part"])
    for x in program.pop("collectives")
  ]
  print("\n" + tables.table(("the compiled step", ""), program.items()))
  if rows:
    print("\n" + tables.table(("collective", "bytes", "times", "part"), rows))
  if "profile" in figures:
    show_profile(figures["profile"])


def show_profile(profile):
  rows = [(k, v["share"], v["backward"]) for k, v in profile["parts"].items()]
  header = ("part of the code, %", "", "of it backwards")
  print("\n" + tables.table(header, rows))
  header = ("kind of operation, %", "")
  print("\n" + tables.table(header, profile["kinds"].items()))
  rows = [
    (
      x["name"],
      x["share"],
      1e3 * x["seconds"],
      x["times"],
      x["kind"],
      x["part"],
    )
    for x in profile["operations"]
  ]
  header = ("operation", "%", "ms", "times", "kind", "part")
  print("\n" + tables.table(header, rows))
  print(
    f"\nA step takes {1e3 * profile['step_seconds']:.2f} ms, in"
    f" {profile['idle_share']:.1f} % of which no operation runs;"
    f" {profile['unattributed_share']:.1f} % of the operations' time comes from"
    " no known part of the code."
  )


def show_paper(text, dataset):
  """Prints what a step takes on TPU chips, on paper.

  Raises:
    UserError: these are no numbers of chips.
  """
  counts = literal(f"[{text}]")
  if not all(isinstance(n, int) and n > 1 for n in counts):
    raise UserError(f"--chips={text} has to be like --chips=8,64,512")
  for chip in CHIPS:
    for n in counts:
      chip.slices(n)  # or an error, before the counting that takes longer
  found = [
    paper.count(arch, stage, dataset)
    for stage in paper.RECIPES
    for arch in paper.ARCHITECTURES
  ]
  for title, table in paper.tables(found, counts):
    print(f"**{title}**\n\n{table}\n")


if __name__ == "__main__":
  main()
