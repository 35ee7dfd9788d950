"""Exports a trained model to where it is to be used next.

  python -m vit_ssl_jax.export --workdir=B --to=reference --out=vit.safetensors
  python -m vit_ssl_jax.export --workdir=B --to=transformers --out=my_vit

of a pretraining the teacher's backbone, of a fine-tuning the classifier.

formats:
  reference     the paper's PyTorch classes: FILE.safetensors, or FILE.pth
  timm          timm's VisionTransformer, SwinTransformer or Cait:
                FILE.safetensors, or FILE.pth; the arguments of
                timm.create_model are printed and in the file's metadata
  transformers  a folder that AutoModelForImageClassification and
                AutoImageProcessor open (ViT and Swin), with a model card
  stablehlo     a compiled program, from uint8 images (b, S, S, 3) to
                probabilities, on CPU, CUDA and TPU, which jax.export runs
                without this package
  orbax         a checkpoint of Orbax: a folder
  npz           FILE.npz of NumPy arrays with flat names such as
                blocks/attn/qkv/kernel

Each names in its metadata the architecture and its sizes, the classes, mean and
standard deviation, the run's config (without the folders of this machine) and
its result. All can be read back, by --init_from of evaluate and predict, and
all but programs by --config.init_from of a fine-tuning.
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
  writing,
)
from vit_ssl_jax.run import checkpoints

# What the name of a file ends with.
SUFFIXES = {
  "reference": (".safetensors", ".pth"),
  "timm": (".safetensors", ".pth"),
  "npz": (".npz",),
  "stablehlo": (".stablehlo",),
}
# What is in a folder of transformers'.
FOLDER = {"config.json", "preprocessor_config.json", "README.md"}
FOLDER |= {pretrained.SAFETENSORS}


def main(argv=None):
  """Runs the command line; a user's mistake costs one sentence and status 2."""
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
    "--to",
    required=True,
    choices=tuple(WRITERS),
    help="one of the formats above",
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
    workdir: as of `checkpoints.read`.
    to: a key of WRITERS.
    out: the new file or folder; what it is named after has to fit `to`.
    overwrite: whether what is there may be replaced.

  Returns:
    Lines that say what was written, its SHA-256, and how to open it.

  Raises:
    UserError: nothing can be written there, the workdir holds no finished
      checkpoint, or the format cannot express the model.
  """
  out = pathlib.Path(os.path.abspath(out))
  check_out(out, to, overwrite)
  given = pretrained.read(workdir)
  if given.workdir is None:
    raise UserError(
      f"--workdir={workdir} is no workdir, nor one of its checkpoints"
    )
  sizes = {k: v for k, v in given.about["model"].items() if k != "name"}
  model = models.build(given.about["architecture"], **sizes)
  params, _ = pretrained.fit(
    given, model.clone(num_classes=0), f"--workdir={workdir}"
  )
  about = public(given) | {"layout": to}
  try:
    usage, digest = WRITERS[to](out, model, params, about)
  except UserError:
    raise
  except (OSError, ValueError, RuntimeError) as e:  # Orbax raises many kinds
    why = getattr(e, "strerror", None) or line(e)
    raise UserError(f"{out} cannot be written: {why}") from e
  return (
    f"{out}: the {about['part']} at step {about['step']},"
    f" {count(params):,} parameters\nSHA-256 {digest}\n\n{usage}"
  )


def check_out(out, to, overwrite):
  """Raises a UserError where nothing is to be written.

  What is there is replaced only if it is an export of ours: never a run, a
  data set, or what others have added files to.
  """
  suffixes = SUFFIXES.get(to, ())
  if suffixes and out.suffix not in suffixes:
    raise UserError(
      f"--out={out} has to end with {' or '.join(suffixes)} for --to={to}"
    )
  among = [p.parent for p in out.parents if p.name == checkpoints.FOLDER]
  if checkpoints.workdir_of(out) or any(map(checkpoints.workdir_of, among)):
    raise UserError(f"--out={out} is a run, or lies among a run's checkpoints")
  if os.path.lexists(out):
    if not overwrite:
      raise UserError(f"{out} exists already: --overwrite replaces it")
    if out.is_symlink() or not is_ours(out, to):
      raise UserError(
        f"{out} is no export to {to}: --overwrite replaces nothing else"
      )
  try:
    tempfile.TemporaryFile(dir=out.parent).close()
  except OSError as e:
    raise UserError(f"--out={out} cannot be written: {e.strerror}") from e


def is_ours(out, to):
  """Whether a file or a folder is an export of ours to a format."""
  if to == "transformers" and out.is_dir():
    others = {path.name for path in out.iterdir()} - FOLDER
    if others:
      return False
  try:
    if out.is_file() and programs.is_program(out):
      about = provenance.from_text(programs.read(out).metadata, out)
    else:
      about = pretrained.read(out).about
  except UserError:
    return False
  return about.get("layout") == to


def public(given):
  """What is known of a run, without the folders of this machine."""
  config = provenance.without_folders(given.about["config"])
  return given.about | {
    "dataset": config["dataset"],
    "config": config,
    "command": provenance.commands(given.workdir),
  }


def count(params):
  return sum(x.size for x in jax.tree.leaves(params))


def write_weights(out, model, params, about):
  """Writes a file in a layout of PyTorch's.

  This and what follows returns how to open it, and a SHA-256.
  """
  layout = about["layout"]
  if layout == "reference":
    renaming.check(model, "the paper's code")
  arrays = interop.to_torch(params, model, layout)
  metadata = provenance.to_text(about)
  if layout == "timm":
    name, arguments = timm.arguments(model)
    metadata["timm"] = json.dumps({"name": name, "arguments": arguments})
    written = "".join(f", {k}={v!r}" for k, v in arguments.items())
    if swin := about["architecture"] == "swin":
      # A class, which JSON cannot hold.
      norm = "functools.partial(torch.nn.LayerNorm, eps=1e-6)"
      metadata["timm_norm_layer"] = norm
      written += f", norm_layer={norm}"
    usage = ["import functools, torch"] if swin else []
    usage += ["import timm", f"model = timm.create_model({name!r}{written})"]
  else:
    usage = [f"model = ...  # the paper's {type(model).__name__}"]
  usage += [*loading(out), "model.load_state_dict(state, strict=True)"]
  write = writing.pth if out.suffix == ".pth" else writing.safetensors
  write(out, arrays, metadata)
  return "\n".join(usage), writing.sha256(out)


def loading(out):
  """Python that reads a file as PyTorch's state dict, in lines."""
  if out.suffix == ".pth":
    return ["import torch", f"state = torch.load({str(out)!r})"]
  return [
    "from safetensors.torch import load_file",
    f"state = load_file({str(out)!r})",
  ]


def write_npz(out, model, params, about):
  """Writes an npz with flat names."""
  arrays = traverse_util.flatten_dict(params, sep="/")
  writing.npz(out, arrays, provenance.to_text(about))
  return f"arrays = np.load({str(out)!r})", writing.sha256(out)


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
    # Elsewhere than on a CPU, products of float32 are rounded by default.
    with jax.default_matmul_precision("highest"):
      y = logits(params, images)
    return jax.nn.softmax(y) if model.num_classes else y

  metadata = provenance.to_text(about)
  programs.write(out, predict, params, model.image_size, metadata)
  kind = "probabilities" if model.num_classes else "features"
  S = model.image_size
  usage = (
    f"from jax import export\ndata = open({str(out)!r}, 'rb').read()\n"
    "program = export.deserialize(bytearray(data))\n"
    f"{kind} = program.call(images)  # uint8 (b, {S}, {S}, 3)"
  )
  return usage, writing.sha256(out)


def write_transformers(out, model, params, about):
  """Writes a folder as transformers has it, with a model card."""
  labels = about["classes"] or None if model.num_classes else None
  config = transformers.transformers_config(model, labels)
  images = transformers.image_processor(
    model, about["mean"], about["std"], about["config"].get("resize", "squash")
  )
  arrays = interop.to_torch(params, model, "transformers")
  with files.atomic_write(out) as folder:
    folder.mkdir()
    for name, content in (
      ("config.json", config),
      ("preprocessor_config.json", images),
    ):
      files.write(folder / name, json.dumps(content, indent=2) + "\n")
    usage = opening(out.name, model)
    text = card.text(about, count(params), about["command"], usage)
    files.write(folder / "README.md", provenance.printable(text))
    writing.safetensors(
      folder / "model.safetensors", arrays, provenance.to_text(about)
    )
  return opening(str(out), model), writing.sha256(out / "model.safetensors")


def opening(folder, model):
  """Python that opens a folder of transformers'."""
  kind, rest = "AutoModelForImageClassification", ""
  if not model.num_classes:
    kind = "AutoModel"
    if models.name_of(model) == "vit":
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
