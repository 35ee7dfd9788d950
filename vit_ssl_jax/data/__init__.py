"""Labelled image datasets as arrays, and the training batches drawn from them.

`registry` lists the datasets, `load` reads one, `batches` draws from it.
TensorFlow is imported only to prepare a dataset and to stream batches.
"""
