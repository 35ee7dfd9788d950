"""Vision transformers trained well on small data sets, in JAX."""

__all__ = ["Classifier", "Pretrainer"]


def __getattr__(name):
  """Imports the estimators on demand: commands do not need scikit-learn."""
  if name not in (*__all__, "ViewPrediction"):
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from vit_ssl_jax import estimators

  return getattr(estimators, name)
