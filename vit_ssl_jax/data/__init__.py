"""Labelled image datasets as arrays, and the training batches drawn from them.

`registry` lists the datasets, `load` reads one, `batches` draws from it.
`registry` imports no JAX; TensorFlow is imported only to read a TFDS dataset
that is not cached yet and to stream batches.
"""
