"""Vision transformers trained well on small data sets, in JAX."""
