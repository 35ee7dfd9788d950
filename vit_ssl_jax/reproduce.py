"""Repeats the paper's tables: runs what is missing, and fills them.

  python -m vit_ssl_jax.reproduce --table=main --only=vit,cifar10 --workdir=R
  python -m vit_ssl_jax.reproduce --table=main --workdir=R --list > jobs
  python -m vit_ssl_jax.reproduce --table=corruptions --workdir=R --scale=smoke

tables:
  main           top-1 of ViT, Swin and CaiT on five sets, from scratch and
                 pretrained on the same set
  fine_grained   the same at 224 pixels on FGVC-Aircraft and Stanford Cars
  corruptions    mean error of ViT and Swin on CIFAR-10-C and CIFAR-100-C
  data_fraction  Swin on 25, 50 and 75 % of CIFAR-10
  small_sets     not the paper's: 500 to 10,000 images of CIFAR-10, from scratch
                 and pretrained, by the paper's recipe and by ours, with a small
                 network; with a picture beside the table

Each cell is a pretraining and two fine-tunings in R/CELL, made by the commands
that --list prints, one a line, where those of a cell are joined by &&. Finished
runs are skipped, and what was killed goes on with the same command. The table
goes to R/TABLE.md, with the mean over the seeds that there are, the paper's
figures beside it, the device and the hours; "not run" stands where nothing is.

--scale=smoke makes a few steps of tiny models on random images instead, with a
small CIFAR-C of random images too; of small_sets it only shortens the runs. It
shows that everything runs, and its accuracies mean nothing.
"""

import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys

from vit_ssl_jax import cli, files, small_sets, smoke
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import authors

# The paper's figures in percent, from scratch and pretrained, beside those of
# `authors.PUBLISHED`. Of which architecture these two are is not known here.
FINE_GRAINED = {"aircraft": (None, 66.04), "cars": (None, 43.89)}
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
TABLES = ("main", "fine_grained", "corruptions", "data_fraction", "small_sets")


@dataclasses.dataclass(frozen=True)
class Cell:
  """A pair of figures in a table.

  Attributes:
    arch, dataset, fraction: what is trained, on which share of a set.
    paper: its figures from scratch and pretrained, or None.
    suite: what else is evaluated, or "".
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
  """Runs the command line; a user's mistake costs one sentence and status 2."""
  parser = cli.Parser(
    prog="python -m vit_ssl_jax.reproduce", description=__doc__
  )
  option = parser.add_argument
  option("--table", required=True, choices=TABLES)
  option(
    "--only", default="", help="ARCH, DATASET or both: vit,cifar10; a number"
  )
  option("--workdir", required=True, help="the folder of all runs, R")
  option("--seeds", type=int, default=1, help="of each cell; %(default)s")
  option("--scale", default="full", choices=("full", "smoke"))
  option("--dry-run", action="store_true", help="what would be run")
  option("--list", action="store_true", help="one command a line, for a queue")
  args = parser.parse_args(argv)
  with cli.reporting_errors():
    if args.seeds < 1:
      raise UserError(f"--seeds={args.seeds} has to be at least 1")
    if args.table == "small_sets":
      cells = small_sets.chosen(args.only)
      plan = small_plan(cells, args)
    else:
      cells = chosen(args.table, args.only)
      plan = cell_plan(cells, args)
    if args.list:
      prepare(cells, args)
      for *_, made in plan:
        print(" && ".join(shlex.join(command) for _, command in made))
    elif args.dry_run:
      print(planned(plan))
    else:
      prepare(cells, args)
      run_all([job for *_, made in plan for job in made])
      finish(cells, args)


def cell_plan(cells, args):
  """(title, estimated hours or None, jobs) of each cell and seed."""
  full = args.scale == "full"
  return [
    (
      f"{cell.name}, seed {seed}",
      hours(cell) if full else None,
      jobs(cell, seed, args),
    )
    for cell in cells
    for seed in range(args.seeds)
  ]


def small_plan(sizes, args):
  """The same of the table of small sets."""
  return [
    (f"{size:,} images, seed {seed}", None, small_sets.jobs(size, seed, args))
    for size in sizes
    for seed in range(args.seeds)
  ]


def prepare(cells, args):
  """Makes the images that are not read as they are."""
  if args.table == "small_sets":
    small_sets.make_subsets(cells, args)
  elif args.scale == "smoke":
    for cell in cells:
      smoke.make(args.workdir, cell)


def finish(cells, args):
  """Writes and prints the table; of small sets also figures and a picture."""
  root = pathlib.Path(args.workdir)
  if args.table == "small_sets":
    rows = small_sets.figures(cells, args)
    text = small_sets.table(cells, rows)
    small_sets.draw(cells, rows, root / "small_sets.png")
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    files.write(root / "small_sets.jsonl", lines)
  else:
    text = table(args.table, cells, args)
  if args.scale == "smoke":
    text += "\n\nA few steps, to see that it runs: the figures mean nothing."
  files.write(root / f"{args.table}.md", text + "\n")
  print(text)


def chosen(name, only):
  """The cells of a table, or those of an architecture or set.

  Raises:
    UserError: there are none of these.
  """
  if name == "main":
    cells = [
      Cell(arch, dataset, figures)
      for dataset, row in authors.PUBLISHED.items()
      for arch, figures in zip(authors.ARCHITECTURES, row, strict=True)
    ]
  elif name == "fine_grained":
    cells = [
      Cell(arch, dataset, figures)
      for dataset, figures in FINE_GRAINED.items()
      for arch in authors.ARCHITECTURES
    ]
  elif name == "corruptions":
    cells = [
      Cell(arch, dataset, figures, suite=f"{dataset}_c")
      for (arch, dataset), figures in CORRUPTIONS.items()
    ]
  else:
    cells = [
      Cell("swin", "cifar10", figures, fraction=fraction)
      for fraction, figures in DATA_FRACTION.items()
    ]
  wanted = [x for x in only.split(",") if x]
  found = [x for x in cells if set(wanted) <= {x.arch, x.dataset}]
  if not found:
    raise UserError(
      f"--only={only}: the table {name} has"
      f" {', '.join(f'{x.arch},{x.dataset}' for x in cells)}"
    )
  return found


def jobs(cell, seed, args):
  """(workdir, command) of what a cell needs, in order."""
  root = pathlib.Path(args.workdir, f"{cell.name}_seed{seed}")
  workdirs = {x: root / x for x in ("pretrain", "scratch", "pretrained")}
  found = []
  for name, workdir in workdirs.items():
    stage = "pretrain" if name == "pretrain" else "finetune"
    values = {"seed": seed, "data_fraction": cell.fraction}
    if name == "pretrained":
      values["init_from"] = workdirs["pretrain"]
    if args.scale == "smoke":
      values |= smoke.recipe(args.workdir, cell, stage)
    arg = f"{cell.arch},{cell.dataset}"
    found.append((workdir, small_sets.command(stage, arg, workdir, values)))
  if cell.suite:
    suite = cell.suite
    if args.scale == "smoke":
      suite += f":{smoke.corrupted(args.workdir, cell)}"
    found += [
      (
        workdirs[name],
        [
          *("python", "-m", "vit_ssl_jax.evaluate"),
          f"--workdir={workdirs[name]}",
          f"--suite={suite}",
        ],
      )
      for name in ("scratch", "pretrained")
    ]
  return found


def done(workdir, command):
  """Whether a job has been done."""
  if "vit_ssl_jax.evaluate" in command:
    suite = command[-1].partition("=")[2].partition(":")[0]
    return suite in content(workdir / "evaluation.json")
  return bool(content(workdir / "result.json"))


def content(path):
  """What a file of JSON holds, or {} where it is none yet."""
  return files.read_json(path) if path.is_file() else {}


def run_all(made):
  """Runs which of some (workdir, command) are missing.

  Raises:
    UserError: a command has failed.
  """
  missing = [job for job in made if not done(*job)]
  for number, (workdir, command) in enumerate(missing, 1):
    cli.log(f"[{number}/{len(missing)}] {workdir}")
    # In a process of its own, so that nothing of one is left to the next.
    ended = subprocess.run([sys.executable, *command[1:]], check=False)
    if ended.returncode in (130, -2):
      raise KeyboardInterrupt("stopped; the same command goes on")
    if ended.returncode:
      raise UserError(
        f"{shlex.join(command)} ended with status {ended.returncode}; the same"
        " command goes on after that is mended"
      )


def hours(cell):
  """Estimated hours on one TPU v5e chip, or None where nothing is known.

  Of `benchmarks/compiled/v5e.jsonl`; they hold for 32 pixels alone.
  """
  path = pathlib.Path("benchmarks", "compiled", "v5e.jsonl")
  facts = registry.SETS[cell.dataset]
  if not path.is_file() or facts.image_size != 32:
    return None
  speeds = {}
  for line in path.read_text().splitlines():
    found = json.loads(line)
    if found["chips"] == 1:
      key = found["arch"], found["stage"]
      speeds[key] = found.get("images_per_second")
  images = cell.fraction * facts.train_images
  tuning, pretraining = (
    speeds.get((cell.arch, x)) for x in ("finetune", "pretrain")
  )
  if not (tuning and pretraining):
    return None
  return images * (200 / pretraining + 2 * 300 / tuning) / 3600


def planned(plan):
  """What would be run, as a table."""
  rows = [
    (title, sum(not done(*job) for job in made), len(made), estimate)
    for title, estimate, made in plan
  ]
  header = ("cell", "runs to do", "of", "hours on a TPU v5e (estimate)")
  return cli.table(header, rows)


def table(name, cells, args):
  """The table in Markdown: ours beside the paper's."""
  kind = "mean error" if name == "corruptions" else "top-1"
  lines = [
    f"| {kind}, % | paper: scratch | pretrained | ours: scratch | pretrained |"
    " seeds | device | hours |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for cell in cells:
    found = [figures(cell, seed, args) for seed in range(args.seeds)]
    found = [x for x in found if x]
    ours = ["not run"] * 2
    device = spent = "-"
    if found:
      ours = [cli.mean_and_spread([x[i] for x in found]) for i in (0, 1)]
      device = found[0][2]
      spent = f"{sum(x[3] for x in found) / 3600:.2f}"
    paper = ["-" if x is None else f"{x:.2f}" for x in cell.paper]
    row = (cell.name, *paper, *ours, len(found), device, spent)
    lines.append(f"| {' | '.join(map(str, row))} |")
  if name == "fine_grained":
    lines += ["", "The paper's figures are of one architecture, unknown here."]
  return "\n".join(lines)


def figures(cell, seed, args):
  """(from scratch, pretrained, device, seconds) of a cell, or None."""
  root = pathlib.Path(args.workdir, f"{cell.name}_seed{seed}")
  results = [
    content(root / x / "result.json")
    for x in ("scratch", "pretrained", "pretrain")
  ]
  if not all(results):
    return None
  if cell.suite:
    found = [
      content(root / x / "evaluation.json").get(cell.suite)
      for x in ("scratch", "pretrained")
    ]
    if not all(found):
      return None
    values = [x["mean_error"] for x in found]
  else:
    values = [x["best_top1_on_test"] for x in results[:2]]
  device = ", ".join(sorted(set(results[0]["devices"])))
  return *values, device, sum(x["seconds"] for x in results)


if __name__ == "__main__":
  main()
