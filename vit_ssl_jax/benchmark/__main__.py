"""Measures the throughput of a stage's training step, or estimates it.

  python -m vit_ssl_jax.benchmark --arch=vit --stage=pretrain --batch_size=512
  python -m vit_ssl_jax.benchmark --steps=3 --rounds=1 --trace=/tmp/trace
  python -m vit_ssl_jax.benchmark --compile_for=v5e:2x4,h100 --chips=1,8

The step is the one that training runs, with augmentation, by the recipe of
--dataset, on random images that lie on the devices.

  images_per_second  of all devices together, by step_seconds
  step_seconds       the median over the rounds; rounds has each of them
  compile_seconds    without JAX's compilation cache
  memory_bytes       of the compiled step, on one device

With --compile_for the step is compiled for devices that need not be there, in
bfloat16, and what follows is an estimate, not a measurement. It needs
`pip install "jax[tpu]"` (v5e, v5p, v6e) or `"jax[cuda13]"` (h100).

  estimated_ms       TPU: the compiler's cycles, and the scheduled instructions
                     of our kernels; H100: a lower bound, the bytes of all
                     kernels over the bandwidth; parts_ms has it by parts
  lookups            gathers and scatters, whose time is not in it on a TPU
  compile_seconds    TPU: about twice as long as in training, for it writes the
                     instructions to files
  fits               whether it fits into the memory of each chip
  share_of_peak      of the chip's products in bfloat16
  link_bytes         sent by each chip to others in a step
"""

import ast
import itertools
import json

import jax

from vit_ssl_jax import cli
from vit_ssl_jax.benchmark import compiled, steps, topologies
from vit_ssl_jax.cli import Parser, configure, log, reporting_errors
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import ARCHITECTURES


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  args, settings = parse(argv)
  with reporting_errors():
    (estimate if args.compile_for else measure)(args, settings)


def measure(args, settings):
  """Prints what is measured here."""
  for key in ("steps", "rounds"):
    if getattr(args, key) < 1:
      raise UserError(f"--{key}={getattr(args, key)} has to be at least 1")
  config = steps.make_config(
    args.stage or "pretrain", args.arch or "vit", args, settings
  )
  configure()
  jax.config.update("jax_enable_compilation_cache", False)
  figures = steps.measure(config, args.steps, args.rounds, args.trace)
  if args.json:
    print(json.dumps(figures))
  else:
    figures.pop("rounds")
    print(cli.table(("benchmark", ""), figures.items()))


def estimate(args, settings):
  """Prints what the compilers log, a line of JSON or of a table for each."""
  # Before JAX looks for devices: compilers read their flags once.
  topologies.set_flags()
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)
  configs = [
    steps.make_config(stage, arch, args, settings)
    for arch in (args.arch.split(",") if args.arch else ARCHITECTURES)
    for stage in ([args.stage] if args.stage else steps.STAGES)
  ]
  cases = [
    (target, config, chips, parallel)
    for target in args.compile_for.split(",")
    for config, chips in itertools.product(configs, args.chips)
    for parallel in args.parallel.split(",")[: None if chips > 1 else 1]
  ]
  for case in cases:
    compiled.check(*case[:3])
  rows = []
  for number, case in enumerate(cases, 1):
    log(f"{number} of {len(cases)}: {case[1].model.name}, {case[1].stage}")
    rows.append(compiled.compile_step(*case))
    if args.json:
      print(json.dumps(rows[-1]), flush=True)
  if not args.json:
    print(compiled.table(rows))


def numbers(text):
  return [int(x) for x in text.split(",")]


def parse(argv=None):
  """The arguments, and the values of --config.KEY=VALUE by their keys."""
  parser = Parser(
    prog="python -m vit_ssl_jax.benchmark",
    usage="%(prog)s [options] [--config.KEY=VALUE ...]",
    description=__doc__,
  )
  option = parser.add_argument
  option("--arch", help="vit; all of them with --compile_for")
  option(
    "--stage", choices=steps.STAGES, help="pretrain; both with --compile_for"
  )
  option("--dataset", default="cifar10", help="whose recipe; %(default)s")
  option("--batch_size", type=int, help="global; the recipe's")
  option("--steps", type=int, default=10, help="of a round; %(default)s")
  option("--rounds", type=int, default=5, help="%(default)s")
  option("--trace", metavar="FOLDER", help="a trace of the rounds, for XProf")
  option("--json", action="store_true", help="lines of JSON, not a table")
  targets = f"such as v5e:2x4; {', '.join(topologies.CHIPS)}"
  option("--compile_for", metavar="TARGET,…", help=targets)
  option("--chips", type=numbers, default=[1], help="such as 1,8,64,256; 1")
  ways = ("data,fsdp", "data", "fsdp")
  words = f"of several chips: {' or '.join(ways)}; %(default)s"
  option("--parallel", choices=ways, default=ways[0], metavar="X", help=words)
  args, rest = parser.parse_known_args(argv)
  settings = {}
  for argument in rest:
    key, equals, value = argument.partition("=")
    if not (equals and key.startswith("--config.")):
      parser.error(f"unrecognized arguments: {argument}")
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # it is text
      value = {"true": True, "false": False}.get(value.lower(), value)
    settings[key.removeprefix("--config.")] = value
  return args, settings


if __name__ == "__main__":
  main()
