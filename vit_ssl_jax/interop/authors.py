"""The weights that the paper's authors have released, by name.

They lie on the release page of their repository (v1.0), one file for each
architecture and set. Nobody has published checksums: the SHA-256 of the first
download is kept, and later files are compared with it.
"""

import hashlib
import http.client
import pathlib
import urllib.error
import urllib.request

from vit_ssl_jax import cli, files
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import weights

PREFIX = "authors:"
URL = (
  "https://github.com/hananshafi/vits-for-small-scale-datasets/releases/download"
  "/v1.0"
)
ARCHITECTURES = ("vit", "swin", "cait")
# Our name of a set: theirs, pixels a side, patch sizes of the architectures.
SETS = {
  "cifar10": ("cifar10", 32, (4, 2, 4)),
  "cifar100": ("cifar100", 32, (4, 2, 4)),
  "cinic10": ("cinic", 32, (4, 2, 4)),
  "svhn": ("svhn", 32, (4, 2, 4)),
  "tiny_imagenet": ("timnet", 64, (8, 4, 8)),
}
# The paper's top-1 in percent of the best epoch on the test images.
PUBLISHED = {
  "cifar10": (96.41, 96.18, 96.42),
  "cifar100": (79.15, 80.95, 80.79),
  "cinic10": (86.91, 87.84, 88.27),
  "svhn": (98.03, 98.01, 98.18),
  "tiny_imagenet": (63.36, 65.13, 67.46),
}
SECONDS = 60  # to wait for the server
CHUNK = 1 << 20


def parse(name):
  """ "authors:vit,cifar10" -> ("vit", "cifar10").

  Raises:
    UserError: the authors have released no such file.
  """
  arch, _, dataset = name.removeprefix(PREFIX).partition(",")
  if arch not in ARCHITECTURES or dataset not in SETS:
    raise UserError(
      f"{name}: the authors have released {PREFIX}ARCH,DATASET with ARCH of"
      f" {', '.join(ARCHITECTURES)} and DATASET of {', '.join(SETS)}"
    )
  return arch, dataset


def file_name(arch, dataset):
  """What the file is called on the release page."""
  name, side, patches = SETS[dataset]
  patch = patches[ARCHITECTURES.index(arch)]
  return f"{arch}_{name}_patch{patch}_input{side}.pth"


def about(name):
  """What a name says, of `metadata.KEYS`."""
  arch, dataset = parse(name)
  _, side, patches = SETS[dataset]
  patch = patches[ARCHITECTURES.index(arch)]
  return {
    "architecture": arch,
    "dataset": dataset,
    "model": {"image_size": side, "patch_size": patch},
  }


def published(name):
  """The paper's accuracy of weights by their name, in percent."""
  arch, dataset = parse(name)
  return PUBLISHED[dataset][ARCHITECTURES.index(arch)]


def download(name):
  """The path of a released file, which is downloaded once.

  Args:
    name: such as "authors:vit,cifar10".

  Raises:
    UserError: there is no such file, it cannot be downloaded, or it is not what
      was downloaded first.
  """
  arch, dataset = parse(name)
  path = files.cache_directory("authors", file_name(arch, dataset))
  if not path.exists():
    if (arch, dataset) == ("vit", "cifar100"):
      cli.say(
        "the paper's README links the ViT of CIFAR-10 for CIFAR-100 too; this"
        f" is {path.name} of the same release"
      )
    fetch(f"{URL}/{path.name}", path)
  known = path.with_suffix(".sha256")
  digest = sha256(path)
  if not known.exists():
    files.write(known, digest + "\n")
  if known.read_text().strip() != digest:
    raise UserError(
      f"{path} is not what was downloaded first: remove it to download it"
      f" again, and {known} too if the authors have replaced it"
    )
  return path


def fetch(url, path):
  """Downloads a file of weights, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.placing(path) as temporary:
    try:
      with urllib.request.urlopen(url, timeout=SECONDS) as response:
        size = int(response.headers.get("Content-Length") or 0)
        copy(response, temporary, size, path.name)
    except (OSError, http.client.HTTPException) as e:
      reason = getattr(e, "reason", None) or e
      raise UserError(f"{url} cannot be downloaded: {reason}") from e
    if size and temporary.stat().st_size != size:
      raise UserError(
        f"{url} cannot be downloaded: the connection ended after"
        f" {temporary.stat().st_size:,} of {size:,} bytes"
      )
    try:
      weights.read(temporary)
    except UserError as e:
      why = str(e).replace(str(temporary), "it")
      raise UserError(f"{url} holds no weights: {why}") from e


def copy(response, path, size, label):
  with (
    path.open("wb") as file,
    cli.progress_bar(size or None, "B", label=label) as bar,
  ):
    while data := response.read(CHUNK):
      file.write(data)
      bar.update(len(data))


def sha256(path: pathlib.Path):
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
