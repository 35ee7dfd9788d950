"""Runs the experiments of the paper's tables and fills them in.

  python -m vit_ssl_jax.reproduce --table=main --only=vit,cifar10 --workdir=R
  python -m vit_ssl_jax.reproduce --table=main --workdir=R --list > jobs

tables:
  main           top-1 of ViT, Swin and CaiT on five data sets, from scratch and
                 pretrained on the same set
  fine_grained   the same at 224 pixels on FGVC-Aircraft and Stanford Cars
  corruptions    mean error of ViT and Swin on CIFAR-10-C and CIFAR-100-C
  data_fraction  Swin on 25, 50 and 75 % of CIFAR-10

A cell is one pretraining and two fine-tunings in R/CELL_seedN. Run this in the
project's folder. Finished runs are skipped, interrupted ones resume. --list
prints the commands instead, a line for each cell.

The table is written to R/main.md, or the name of another table: the mean over
the seeds beside the paper's figures, the device and the hours. Cells without
results read "not run".
"""

import dataclasses
import pathlib
import shlex
import subprocess
import sys

from vit_ssl_jax import cli, files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import authors

# Top-1 in percent, from scratch and pretrained; `authors.PUBLISHED` has those
# of the main table. The paper does not name the architecture.
FINE_GRAINED = {"aircraft": (None, 66.04), "cars": (None, 43.89)}
# Mean error in percent.
CORRUPTIONS = {
  ("vit", "cifar10"): (39.93, 26.01),
  ("swin", "cifar10"): (36.13, 25.38),
  ("vit", "cifar100"): (65.04, 48.10),
  ("swin", "cifar100"): (53.83, 45.10),
}
DATA_FRACTION = {
  0.25: (83.36, 91.75),
  0.5: (90.83, 94.26),
  0.75: (91.73, 95.40),
}
TABLES = ("main", "fine_grained", "corruptions", "data_fraction")
HEADER = "paper: scratch | pretrained | ours: scratch | pretrained | seeds"


@dataclasses.dataclass(frozen=True)
class Cell:
  """A pair of figures in a table.

  Attributes:
    paper: the paper's, from scratch and pretrained.
    fraction: share of the data set to train on.
    suite: evaluation suite after training, or "".
  """

  arch: str
  dataset: str
  paper: tuple[float | None, float | None]
  fraction: float = 1.0
  suite: str = ""

  @property
  def name(self):
    share = f"_{self.fraction:g}" if self.fraction < 1 else ""
    return f"{self.arch}_{self.dataset}{share}"


def main(argv=None):
  """Runs the command line; user errors exit with status 2."""
  parser = cli.Parser(
    prog="python -m vit_ssl_jax.reproduce", description=__doc__
  )
  option = parser.add_argument
  option("--table", required=True, choices=TABLES)
  option("--only", default="", help="ARCH, DATASET or both, such as vit,svhn")
  option("--workdir", required=True, help="folder of all runs, R")
  option("--seeds", type=int, default=1, help="seeds a cell; %(default)s")
  option("--dry-run", action="store_true", help="list the missing runs")
  option("--list", action="store_true", help="print commands for a job queue")
  args = parser.parse_args(argv)
  with cli.reporting_errors():
    if args.seeds < 1:
      raise UserError(f"--seeds={args.seeds} must be at least 1")
    cells = select(args.table, args.only)
    plan = {
      f"{cell.name}, seed {seed}": jobs(cell, seed, args.workdir)
      for cell in cells
      for seed in range(args.seeds)
    }
    if args.list:
      print_commands(plan)
    elif args.dry_run:
      print_plan(plan)
    else:
      run_missing(plan)
      text = table(args.table, cells, args)
      files.write(pathlib.Path(args.workdir, f"{args.table}.md"), text + "\n")
      print(text)


def select(name, only):
  """Cells of a table that match an architecture, a data set or both."""
  if name == "main":
    cells = [
      Cell(arch, dataset, paper)
      for dataset, row in authors.PUBLISHED.items()
      for arch, paper in zip(authors.ARCHITECTURES, row, strict=True)
    ]
  elif name == "fine_grained":
    cells = [
      Cell(arch, dataset, paper)
      for dataset, paper in FINE_GRAINED.items()
      for arch in authors.ARCHITECTURES
    ]
  elif name == "corruptions":
    cells = [
      Cell(arch, dataset, paper, suite=f"{dataset}_c")
      for (arch, dataset), paper in CORRUPTIONS.items()
    ]
  else:
    cells = [
      Cell("swin", "cifar10", paper, fraction)
      for fraction, paper in DATA_FRACTION.items()
    ]
  wanted = {x for x in only.split(",") if x}
  selected = [x for x in cells if wanted <= {x.arch, x.dataset}]
  if not selected:
    possible = ", ".join(f"{x.arch},{x.dataset}" for x in cells)
    raise UserError(f"--only={only!r}: the table {name} has {possible}")
  return selected


def jobs(cell, seed, root):
  """(workdir, command) of each run and evaluation of a cell, in order."""
  root = cell_folder(cell, seed, root)
  arg = f"{cell.arch},{cell.dataset}"
  values = {"seed": seed, "data_fraction": cell.fraction}
  tuned = [root / "scratch", root / "pretrained"]
  init = {"init_from": root / "pretrain"}
  commands = [
    (root / "pretrain", train("pretrain", arg, root / "pretrain", values)),
    (tuned[0], train("finetune", arg, tuned[0], values)),
    (tuned[1], train("finetune", arg, tuned[1], values | init)),
  ]
  evaluate = ["python", "-m", "vit_ssl_jax.evaluate"]
  if cell.suite:
    commands += [
      (x, [*evaluate, f"--workdir={x}", f"--suite={cell.suite}"]) for x in tuned
    ]
  return commands


def cell_folder(cell, seed, root):
  return pathlib.Path(root, f"{cell.name}_seed{seed}")


def train(stage, arg, workdir, values):
  """The command of a run; `values` differ from the recipe's."""
  return [
    *("python", "-m", "main"),
    f"--config=configs/{stage}.py:{arg}",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def is_done(workdir, command):
  """True if the result of a command is there."""
  if "vit_ssl_jax.evaluate" in command:
    suite = command[-1].removeprefix("--suite=")
    return suite in read_json(workdir / "evaluation.json")
  return bool(read_json(workdir / "result.json"))


def read_json(path):
  """A file's content, {} if there is no file."""
  return files.read_json(path) if path.is_file() else {}


def print_commands(plan):
  """Prints a line for each cell and seed, its commands joined by &&."""
  for commands in plan.values():
    print(" && ".join(shlex.join(command) for _, command in commands))


def print_plan(plan):
  """Prints how many runs of each cell and seed are missing."""
  rows = [
    (title, sum(not is_done(*job) for job in commands), len(commands))
    for title, commands in plan.items()
  ]
  print(cli.table(("cell", "runs to do", "of"), rows))


def run_missing(plan):
  """Runs the commands without a result, each in a process of its own."""
  missing = [
    job for commands in plan.values() for job in commands if not is_done(*job)
  ]
  for number, (workdir, command) in enumerate(missing, 1):
    cli.log(f"[{number}/{len(missing)}] {workdir}")
    status = subprocess.run([sys.executable, *command[1:]]).returncode
    if status in (130, -2):
      raise KeyboardInterrupt("interrupted: the same command resumes")
    if status:
      raise UserError(
        f"{shlex.join(command)} failed with status {status}; rerun the same"
        " command to resume"
      )


def table(name, cells, args):
  """The table in Markdown."""
  kind = "mean error" if name == "corruptions" else "top-1"
  lines = [f"| {kind}, % | {HEADER} | device | hours |", "|---" * 8 + "|"]
  for cell in cells:
    runs = [read_runs(cell, seed, args.workdir) for seed in range(args.seeds)]
    runs = [x for x in runs if x]
    ours, device, hours = ["not run"] * 2, "-", "-"
    if runs:
      scratch, pretrained, devices, seconds = zip(*runs, strict=True)
      ours = [cli.mean_and_spread(x) for x in (scratch, pretrained)]
      device, hours = devices[0], f"{sum(seconds) / 3600:.2f}"
    paper = ["-" if x is None else f"{x:.2f}" for x in cell.paper]
    row = (cell.name, *paper, *ours, len(runs), device, hours)
    lines.append(f"| {' | '.join(map(str, row))} |")
  if name == "fine_grained":
    lines += ["", "The paper does not name the architecture of its figures."]
  return "\n".join(lines)


def read_runs(cell, seed, root):
  """(from scratch, pretrained, device, seconds) of a cell, or None."""
  root = cell_folder(cell, seed, root)
  names = ("scratch", "pretrained", "pretrain")
  results = [read_json(root / x / "result.json") for x in names]
  if not all(results):
    return None
  if cell.suite:
    suites = [
      read_json(root / x / "evaluation.json").get(cell.suite) for x in names[:2]
    ]
    if not all(suites):
      return None
    figures = [x["mean_error"] for x in suites]
  else:
    figures = [x["best_top1_on_test"] for x in results[:2]]
  device = ", ".join(sorted(set(results[0]["devices"])))
  return *figures, device, sum(x["seconds"] for x in results)


if __name__ == "__main__":
  main()
