"""Exports a trained model to other frameworks.

  python -m vit_ssl_jax.export --workdir=B --to=reference --out=vit.safetensors
  python -m vit_ssl_jax.export --workdir=B --to=transformers --out=my_vit

exports the teacher's backbone of a pretraining, the classifier of a
fine-tuning.

formats:
  reference     the paper's PyTorch classes: FILE.safetensors, or FILE.pth
  timm          timm's VisionTransformer, SwinTransformer or Cait:
                FILE.safetensors, or FILE.pth; the arguments of
                timm.create_model are printed and in the file's metadata
  transformers  a folder for AutoModelForImageClassification and
                AutoImageProcessor (ViT and Swin), with a model card
  stablehlo     a compiled program, from uint8 images (b, S, S, 3) to
                probabilities, on CPU, CUDA and TPU, which jax.export runs
                without this package
  orbax         a checkpoint of Orbax: a folder
  npz           FILE.npz of NumPy arrays with flat names such as
                blocks/attn/qkv/kernel

Metadata holds the architecture and its sizes, the classes, mean and standard
deviation, the run's config (without the folders of this machine) and its
result. All formats except stablehlo can be read back, by --init_from of
evaluate and predict and by --config.init_from of a fine-tuning.
"""

import json
import os
import pathlib
import tempfile

import jax
from flax import traverse_util

from vit_ssl_jax import evaluate, files, interop, models
from vit_ssl_jax.cli import Parser, configure, reporting_errors
from vit_ssl_jax.errors import UserError, line
from vit_ssl_jax.interop import (
  card,
  metadata as provenance,
  pretrained,
  programs,
  renaming,
  timm,
  transformers,
  write,
)
from vit_ssl_jax.run import checkpoints

# Suffixes of the formats that are files.
SUFFIXES = {
  "reference": (".safetensors", ".pth"),
  "timm": (".safetensors", ".pth"),
  "npz": (".npz",),
  "stablehlo": (".stablehlo",),
}
# Content of a folder of transformers.
FOLDER = {
  "config.json",
  "preprocessor_config.json",
  "README.md",
  pretrained.SAFETENSORS,
}


def main(argv=None):
  """Runs the command."""
  args = parse(argv)
  with reporting_errors():
    configure()
    print(export(args.workdir, args.to, args.out, args.overwrite))


def parse(argv):
  parser = Parser(
    prog="python -m vit_ssl_jax.export",
    usage="%(prog)s --workdir=B --to=FORMAT --out=PATH [--overwrite]",
    description=__doc__,
  )
  parser.add_argument(
    "--workdir",
    required=True,
    help="a run's folder, of which the newest checkpoint is taken, or one of"
    " its checkpoints, WORKDIR/checkpoints/STEP",
  )
  parser.add_argument(
    "--to", required=True, choices=tuple(WRITERS), help="a format, see above"
  )
  parser.add_argument(
    "--out", required=True, metavar="PATH", help="the new file or folder"
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace what is at PATH"
  )
  return parser.parse_args(argv)


def export(workdir, to, out, overwrite=False):
  """Exports a run's model.

  Args:
    workdir: a run's folder or one of its checkpoints.
    to: a key of `WRITERS`.
    out: the new file or folder, with a suffix that fits `to`.
    overwrite: whether an earlier export may be replaced.

  Returns:
    A message with the path, its SHA-256 and how to open it.

  Raises:
    UserError: `out` cannot be written, there is no finished checkpoint, or the
      format cannot express the model.
  """
  out = pathlib.Path(os.path.abspath(out))
  check_out(out, to, overwrite)
  weights = pretrained.read(workdir)
  if weights.workdir is None:
    raise UserError(
      f"--workdir={workdir} must be a run or one of its checkpoints"
    )
  sizes = {k: v for k, v in weights.about["model"].items() if k != "name"}
  model = models.build(weights.architecture, **sizes)
  params, _ = pretrained.fit(
    weights, model.clone(num_classes=0), f"--workdir={workdir}"
  )
  about = public(weights) | {"layout": to}
  try:
    usage, digest = WRITERS[to](out, model, params, about)
  except UserError:
    raise
  except (OSError, ValueError, RuntimeError) as e:  # Orbax raises many kinds
    reason = getattr(e, "strerror", None) or line(e)
    raise UserError(f"{out} cannot be written: {reason}") from e
  return (
    f"{out}: the {about['part']} at step {about['step']},"
    f" {count(params):,} parameters\nSHA-256 {digest}\n\n{usage}"
  )


def check_out(out, to, overwrite):
  """Checks that `out` is free, or an export to the same format."""
  suffixes = SUFFIXES.get(to, ())
  if suffixes and out.suffix not in suffixes:
    raise UserError(
      f"--out={out} must end with {' or '.join(suffixes)} for --to={to}"
    )
  runs = [p.parent for p in out.parents if p.name == checkpoints.FOLDER]
  if any(map(checkpoints.workdir_of, [out, *runs])):
    raise UserError(f"--out={out} is a run, or lies among a run's checkpoints")
  if os.path.lexists(out):
    if not overwrite:
      raise UserError(f"{out} exists: --overwrite replaces it")
    if out.is_symlink() or not is_export(out, to):
      raise UserError(
        f"{out} is no export to {to}: --overwrite replaces nothing else"
      )
  try:
    tempfile.TemporaryFile(dir=out.parent).close()
  except OSError as e:
    raise UserError(f"--out={out} cannot be written: {e.strerror}") from e


def is_export(out, to):
  """True if a file or a folder is an export to a format."""
  try:
    if to == "transformers" and {x.name for x in out.iterdir()} - FOLDER:
      return False
    if to == "stablehlo":
      content = files.read_json(programs.metadata_path(out))
      about = provenance.from_text(content["metadata"], out)
    else:
      about = pretrained.read(out).about
  except (UserError, OSError, TypeError, KeyError):
    return False
  return about.get("layout") == to


def public(weights):
  """Returns the metadata without the folders of this machine."""
  config = provenance.without_folders(weights.about["config"])
  return weights.about | {
    "dataset": config["dataset"],
    "config": config,
    "command": provenance.commands(weights.workdir),
  }


def count(params):
  return sum(x.size for x in jax.tree.leaves(params))


def write_weights(out, model, params, about):
  """Writes PyTorch's weights; like all writers, returns usage and SHA-256."""
  layout = about["layout"]
  if layout == "reference":
    renaming.check_locality(model, "the paper's code")
  arrays = interop.to_torch(params, model, layout)
  metadata = provenance.to_text(about)
  usage = f"model = ...  # the paper's {type(model).__name__}"
  if layout == "timm":
    name, kwargs = timm.arguments(model)
    metadata["timm"] = json.dumps({"name": name, "arguments": kwargs})
    arguments = [repr(name), *(f"{k}={v!r}" for k, v in kwargs.items())]
    if timm.is_swin(model):  # norm_layer is a class, which JSON cannot hold
      metadata["timm_norm_layer"] = timm.NORM
      arguments.append(f"norm_layer={timm.NORM}")
    usage = "import functools, timm, torch\n"
    usage += f"model = timm.create_model({', '.join(arguments)})"
  if out.suffix == ".pth":
    write.write_pth(out, arrays, metadata)
    load = f"import torch\nstate = torch.load({str(out)!r})"
  else:
    write.write_safetensors(out, arrays, metadata)
    load = "from safetensors.torch import load_file\n"
    load += f"state = load_file({str(out)!r})"
  usage += f"\n{load}\nmodel.load_state_dict(state, strict=True)"
  return usage, write.sha256(out)


def write_npz(out, model, params, about):
  """Writes an npz with flat names."""
  arrays = traverse_util.flatten_dict(params, sep="/")
  write.write_npz(out, arrays, provenance.to_text(about))
  return f"arrays = np.load({str(out)!r})", write.sha256(out)


def write_orbax(out, model, params, about):
  """Writes a checkpoint of Orbax; the SHA-256 is that of its arrays."""
  metadata = provenance.to_text(about)
  checkpoints.write_tree(out, {"params": params}, metadata)
  usage = (
    "from orbax.checkpoint import v1 as ocp\n"
    f"params = ocp.load({str(out)!r})['params']"
  )
  return usage, checkpoints.sha256(params)


def write_stablehlo(out, model, params, about):
  """Writes a compiled program."""
  logits = evaluate.make_predict(model, about["mean"], about["std"])

  def predict(params, images):
    # Accelerators round products of float32 by default.
    with jax.default_matmul_precision("highest"):
      y = logits(params, images)
    return jax.nn.softmax(y) if model.num_classes else y

  metadata = provenance.to_text(about)
  programs.write_program(out, predict, params, model.image_size, metadata)
  kind = "probabilities" if model.num_classes else "features"
  S = model.image_size
  usage = (
    f"from jax import export\ndata = open({str(out)!r}, 'rb').read()\n"
    "program = export.deserialize(bytearray(data))\n"
    f"{kind} = program.call(images)  # uint8 (b, {S}, {S}, 3)"
  )
  return usage, write.sha256(out)


def write_transformers(out, model, params, about):
  """Writes a folder of transformers, with a model card."""
  labels = about["classes"] or None if model.num_classes else None
  config = transformers.transformers_config(model, labels)
  images = transformers.image_processor(
    model, about["mean"], about["std"], about["config"].get("resize", "squash")
  )
  arrays = interop.to_torch(params, model, "transformers")
  usage = opening(out.name, model)
  text = card.text(about, count(params), about["command"], usage)
  with files.atomic_write(out) as folder:
    folder.mkdir()
    files.write(folder / "config.json", json.dumps(config, indent=2))
    files.write(
      folder / "preprocessor_config.json", json.dumps(images, indent=2)
    )
    files.write(folder / "README.md", provenance.printable(text))
    file = folder / pretrained.SAFETENSORS
    write.write_safetensors(file, arrays, provenance.to_text(about))
    digest = write.sha256(file)
  return opening(str(out), model), digest


def opening(folder, model):
  """Returns Python that opens a folder of transformers."""
  kind, rest = "AutoModelForImageClassification", ""
  if not model.num_classes:
    kind = "AutoModel"
    if not transformers.is_swin(model):
      rest = ", add_pooling_layer=False"
  return (
    f"from transformers import AutoImageProcessor, {kind}\n"
    f"processor = AutoImageProcessor.from_pretrained({folder!r})\n"
    f"model = {kind}.from_pretrained({folder!r}{rest})"
  )


WRITERS = {
  "reference": write_weights,
  "timm": write_weights,
  "transformers": write_transformers,
  "stablehlo": write_stablehlo,
  "orbax": write_orbax,
  "npz": write_npz,
}


if __name__ == "__main__":
  main()
