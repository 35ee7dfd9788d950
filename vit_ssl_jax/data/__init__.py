"""Sets of labelled images as arrays, and the batches drawn from them.

`registry` says what there is, `load` reads one set, `batches` draws from it and
`inputs` does both for a config. `registry` imports no JAX, and only what has to
be read by TFDS or streamed imports TensorFlow.
"""
