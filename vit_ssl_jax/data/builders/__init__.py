"""TFDS builders of datasets that TFDS does not have, or not any more.

Importing this package registers all of them with tensorflow_datasets, so that
`tfds.load("cinic10")` works. A new builder is a new module here.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
  importlib.import_module(f"{__name__}.{module.name}")
