"""TFDS builders of the sets that TFDS does not have, or not any more.

Importing this package imports tensorflow_datasets and registers them, so that
`tfds.load("cinic10")` finds them.
"""

from vit_ssl_jax.data.builders.cinic10 import Cinic10
from vit_ssl_jax.data.builders.digits import Digits
from vit_ssl_jax.data.builders.fgvc_aircraft import FgvcAircraft
from vit_ssl_jax.data.builders.stanford_cars import StanfordCars
from vit_ssl_jax.data.builders.tiny_imagenet import TinyImagenet

__all__ = ["Cinic10", "Digits", "FgvcAircraft", "StanfordCars", "TinyImagenet"]
