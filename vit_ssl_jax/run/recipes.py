"""The command line that a run's config comes from."""

import contextlib
import json
import pathlib
import shlex

from configs import finetune, pretrain
from vit_ssl_jax import files
from vit_ssl_jax.cli import UserError
from vit_ssl_jax.run import checkpoints, workdir as workdirs


def commands(workdir):
  """What trained a run: its command line, after that of its pretraining.

  The latter is known where config.init_from is a run that is still there.
  """
  config = files.read_json(workdir / "config.json")
  lines = [command(config, workdir.name)]
  source = config.get("init_from")
  before = checkpoints.workdir_of(source) if source else None
  if before:
    with contextlib.suppress(UserError, KeyError):
      first = files.read_json(before / "config.json")
      lines.insert(0, command(first, before.name))
  return "\n".join(lines)


def command(config, workdir):
  """The command line that trains with a config, by its recipe.

  Args:
    config: a run's, as a dict.
    workdir: the run's folder, as the command is to name it.
  """
  config = without_folders(config)
  stage = config["stage"]
  recipe_name = f"{config['model']['name']},{config['dataset']}"
  stages = {"pretrain": pretrain, "finetune": finetune}
  recipe = stages[stage].get_config(recipe_name)
  plain = workdirs.flat(json.loads(workdirs.dump(recipe)))
  plain |= {"mean": config["mean"], "std": config["std"]}  # the data's own
  flags = [
    f"--config.{key}={tuple(x) if isinstance(x, list) else x}"
    for key, x in workdirs.flat(config).items()
    if x != plain.get(key)
  ]
  return " \\\n  ".join(
    [
      "python -m main "
      + shlex.quote(f"--config=configs/{stage}.py:{recipe_name}"),
      *map(shlex.quote, flags),
      shlex.quote(f"--workdir={workdir}"),
    ]
  )


def without_folders(config):
  """A run's config, a dict, without the folders of this machine."""
  dataset = last_name(config["dataset"])
  config = config | {"dataset": dataset, "data_dir": ""}
  if config.get("init_from"):
    path = pathlib.Path(config["init_from"])
    in_run = path.parent.name == checkpoints.FOLDER  # WORKDIR/checkpoints/STEP
    config["init_from"] = "/".join(path.parts[-3 if in_run else -1 :])
  return config


def last_name(dataset):
  """folder:/a/b -> folder:b, and npz:/a/b.npz -> npz:b.npz."""
  kind, colon, path = dataset.partition(":")
  return kind + colon + pathlib.Path(path).name
