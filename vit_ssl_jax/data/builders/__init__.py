"""TFDS builders of the sets that TFDS does not have, or not any more.

Importing this package imports tensorflow_datasets and registers all of them, so
that `tfds.load("cinic10")` finds them. One more is one more module here.
"""

import importlib
import pkgutil

for module in pkgutil.iter_modules(__path__):
  importlib.import_module(f"{__name__}.{module.name}")
