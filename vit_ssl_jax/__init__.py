"""Vision transformers trained well on small data sets, in JAX."""

__all__ = ["Classifier", "ViewPrediction"]


def __getattr__(name):
  """The estimators, imported when they are asked for: commands need none."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from vit_ssl_jax import estimators

  return getattr(estimators, name)
