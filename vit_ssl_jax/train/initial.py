"""The weights that a fine-tuning starts from, of config.init_from."""

import dataclasses

from vit_ssl_jax import cli
from vit_ssl_jax.interop import pretrained


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights that fit the model, apart from the head."""

  source: str  # config.init_from
  params: dict  # with a head's, if there is one
  about: dict  # of `metadata.KEYS`

  def params_for(self, classes):
    """The parameters, without a head that is not for these classes."""
    keep, line = pretrained.head(self.params, self.about, classes)
    if line:
      cli.log(f"init_from={self.source}: {line}")
    return {k: x for k, x in self.params.items() if keep or k != "head"}


def read(config, model):
  """Reads config.init_from into `Weights` that fit a model without classes."""
  weights = pretrained.read(config.init_from)
  source = f"init_from={config.init_from}"
  params, lines = pretrained.fit(weights, model, source)
  warn_of_leakage(config, weights.about.get("config"))
  for line in lines:
    cli.log(line)
  return Weights(config.init_from, params, weights.about)


def model_sizes(config):
  """The model's sizes of config.init_from, a dict."""
  return pretrained.read(config.init_from).about.get("model") or {}


def warn_of_leakage(config, source):
  """Warns where `source`, a config, may have trained on this run's test set."""
  if not (source and config.dataset.startswith("folder:")):
    return
  keys = ("test_fraction", "split_seed")
  differ = [key for key in keys if source.get(key) != config[key]]
  # An exported file knows the folder's last name alone.
  names = [x["dataset"].rpartition("/")[2] for x in (source, config)]
  names = [x.removeprefix("folder:") for x in names]
  if names[0] == names[1] and differ:
    cli.log(
      f"warning: init_from={config.init_from} was trained with another"
      f" {' and '.join(differ)}: where {config.dataset} has no train and test,"
      " it has seen images that this run tests on"
    )
