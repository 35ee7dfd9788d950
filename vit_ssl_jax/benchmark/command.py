"""Measures the throughput of a training step, or estimates it.

  python -m vit_ssl_jax.benchmark --arch=vit --stage=pretrain --batch_size=512
  python -m vit_ssl_jax.benchmark --compile_for=v5e:2x4 --chips=1,8

Runs the step of a recipe, with augmentation, on random images in device memory:
images_per_second on all devices, from step_seconds, the median of the rounds;
compile_seconds; memory_bytes on one device.

--compile_for compiles the step in bfloat16 for accelerators that need not be
present. It needs `pip install "jax[tpu]"` (v5e, v5p, v6e) or `"jax[cuda13]"`
(h100). Its figures are estimates:

  estimated_ms     TPU: the compiler's cycles and the scheduled instructions of
                   Pallas kernels, without gathers and scatters; H100: a lower
                   bound, bytes_accessed by all kernels over the bandwidth
  fits             whether memory_bytes fits on each chip
  link_bytes       sent by each chip to others
  compile_seconds  TPU: about twice that of training
"""

import ast
import json

import jax

from vit_ssl_jax import cli, recipes
from vit_ssl_jax.benchmark import compiled, steps, topologies
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.models import ARCHITECTURES


def main(argv=None):
  """Runs the command line; user errors exit with status 2."""
  args, settings = parse(argv)
  with cli.reporting_errors():
    for key in ("steps", "rounds"):
      if getattr(args, key) < 1:
        raise UserError(f"--{key}={getattr(args, key)} must be at least 1")
    if args.compile_for:
      topologies.set_flags()  # compilers read them once
      jax.config.update("jax_platforms", "cpu")
    else:
      cli.configure()
    jax.config.update("jax_enable_compilation_cache", False)
    on_cpu = not args.compile_for and jax.default_backend() == "cpu"
    config = steps.make_config(
      *(args.stage, args.arch, args.dataset, args.batch_size, settings), on_cpu
    )
    if args.compile_for:
      rows = compiled.estimates(
        args.compile_for, config, args.chips, args.parallel
      )
    else:
      rows = [steps.measure(config, args.steps, args.rounds, args.trace)]
    for figures in rows:
      if args.json:
        print(json.dumps(figures), flush=True)
      else:
        figures.pop("rounds", None)
        print(cli.table(("benchmark", ""), figures.items()), flush=True)


def integers(text):
  return [int(x) for x in text.split(",")]


def parse(argv=None):
  """The arguments, and {key: value} of --config.KEY=VALUE."""
  parser = cli.Parser(
    prog="python -m vit_ssl_jax.benchmark",
    usage="%(prog)s [options] [--config.KEY=VALUE ...]",
    description=__doc__,
  )
  option = parser.add_argument
  option("--arch", default="vit", choices=[*ARCHITECTURES])
  option("--stage", default="pretrain", choices=recipes.STAGES)
  option("--dataset", default="cifar10", help="of the recipe; %(default)s")
  option("--batch_size", type=int, help="global; the recipe's")
  option("--steps", type=int, default=10, help="steps a round; %(default)s")
  option("--rounds", type=int, default=5, help="%(default)s")
  option("--trace", metavar="FOLDER", help="write a trace for XProf")
  option("--json", action="store_true", help="JSON lines instead of a table")
  chips = ", ".join(topologies.CHIPS)
  option("--compile_for", metavar="TARGET", help=f"such as v5e:2x4; {chips}")
  option("--chips", type=integers, default=[1], help="such as 1,8; 1")
  option("--parallel", default="data", choices=("data", "fsdp"))
  args, rest = parser.parse_known_args(argv)
  settings = {}
  for argument in rest:
    key, equals, value = argument.partition("=")
    if not (equals and key.startswith("--config.")):
      parser.error(f"unrecognized arguments: {argument}")
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):  # a string
      value = {"true": True, "false": False}.get(value.lower(), value)
    settings[key.removeprefix("--config.")] = value
  return args, settings
