"""The weights that the paper's authors have released, by name.

They lie on the release page of their repository (v1.0), one file for each
architecture and set. Nobody has published checksums: the SHA-256 of the first
download is kept, and later files are compared with it.
"""

import http.client
import urllib.error
import urllib.request

from vit_ssl_jax import cli, files, models
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import weights, writing

PREFIX = "authors:"
URL = (
  "https://github.com/hananshafi/vits-for-small-scale-datasets/releases/download"
  "/v1.0"
)
ARCHITECTURES = ("vit", "swin", "cait")
# Our name of a set: theirs.
SETS = {
  "cifar10": "cifar10",
  "cifar100": "cifar100",
  "cinic10": "cinic",
  "svhn": "svhn",
  "tiny_imagenet": "timnet",
}
# The paper's top-1 in percent of the best epoch on the test images, from
# scratch and pretrained, of each architecture.
PUBLISHED = {
  "tiny_imagenet": ((57.07, 63.36), (60.05, 65.13), (64.37, 67.46)),
  "cifar10": ((93.58, 96.41), (93.97, 96.18), (94.91, 96.42)),
  "cifar100": ((73.81, 79.15), (77.32, 80.95), (76.89, 80.79)),
  "cinic10": ((83.73, 86.91), (83.75, 87.84), (85.44, 88.27)),
  "svhn": ((97.82, 98.03), (97.83, 98.01), (98.13, 98.18)),
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


def patch_size(arch, dataset):
  patch_sizes = models.ARCHITECTURES[arch].patch_sizes
  return patch_sizes[registry.SETS[dataset].image_size]


def file_name(arch, dataset):
  """What the file is called on the release page."""
  facts = registry.SETS[dataset]
  patch, side = patch_size(arch, dataset), facts.image_size
  return f"{arch}_{SETS[dataset]}_patch{patch}_input{side}.pth"


def about(name):
  """What a name says, of `metadata.KEYS`."""
  arch, dataset = parse(name)
  facts = registry.SETS[dataset]
  model = {
    "image_size": facts.image_size,
    "patch_size": patch_size(arch, dataset),
  }
  return {"architecture": arch, "dataset": dataset, "model": model}


def published(name):
  """The paper's accuracy of weights by their name, in percent."""
  arch, dataset = parse(name)
  return PUBLISHED[dataset][ARCHITECTURES.index(arch)][1]


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
      cli.log(
        "the paper's README links the ViT of CIFAR-10 for CIFAR-100 too; this"
        f" is {path.name} of the same release"
      )
    fetch(f"{URL}/{path.name}", path)
  known = path.with_suffix(".sha256")
  digest = writing.sha256(path)
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
  with files.atomic_write(path) as temporary:
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
