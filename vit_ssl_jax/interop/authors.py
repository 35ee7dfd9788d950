"""Weights that the paper's authors have released (v1.0), by name.

Each architecture and data set has one file on the release page; there are no
published checksums.
"""

import http.client

from vit_ssl_jax import files, models
from vit_ssl_jax.data import registry
from vit_ssl_jax.errors import UserError
from vit_ssl_jax.interop import read

PREFIX = "authors:"
URL = (
  "https://github.com/hananshafi/vits-for-small-scale-datasets/releases/download"
  "/v1.0"
)
ARCHITECTURES = ("vit", "swin", "cait")
# Our name of a data set -> the release's.
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


def parse(name):
  """ "authors:vit,cifar10" -> ("vit", "cifar10")."""
  arch, _, dataset = name.removeprefix(PREFIX).partition(",")
  if arch not in ARCHITECTURES or dataset not in SETS:
    raise UserError(
      f"the authors have not released {name!r}: possible are"
      f" {PREFIX}ARCH,DATASET with ARCH of {', '.join(ARCHITECTURES)} and"
      f" DATASET of {', '.join(SETS)}"
    )
  return arch, dataset


def about(name):
  """Returns the metadata of released weights, of `metadata.KEYS`."""
  arch, dataset = parse(name)
  return {
    "architecture": arch,
    "dataset": dataset,
    "model": input_sizes(arch, dataset),
  }


def input_sizes(arch, dataset):
  """Returns the image size and patch size of a released model."""
  side = registry.SETS[dataset].image_size
  patch = models.ARCHITECTURES[arch].patch_sizes[side]
  return {"image_size": side, "patch_size": patch}


def published(name):
  """Returns the paper's top-1 in percent for weights by their name."""
  arch, dataset = parse(name)
  return PUBLISHED[dataset][ARCHITECTURES.index(arch)][1]


def file_name(arch, dataset):
  """Returns a file's name on the release page."""
  side, patch = input_sizes(arch, dataset).values()
  return f"{arch}_{SETS[dataset]}_patch{patch}_input{side}.pth"


def download(name):
  """Downloads a released file once, and returns its path."""
  path = files.cache_directory("authors", file_name(*parse(name)))
  if path.exists():
    return path
  torch = read.import_torch(name)
  url = f"{URL}/{path.name}"
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path) as temporary:
    try:
      torch.hub.download_url_to_file(url, str(temporary))
      read.read_file(temporary)
    except (OSError, http.client.HTTPException) as e:
      reason = getattr(e, "reason", e)
      raise UserError(f"could not download {url}: {reason}") from e
    except UserError as e:
      reason = str(e).replace(str(temporary), "it")
      raise UserError(f"{url} holds no weights: {reason}") from e
  return path
