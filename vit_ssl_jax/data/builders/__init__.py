"""TFDS builders of the sets that TFDS itself lacks or can no longer fetch.

Importing one of the modules imports tensorflow_datasets and registers its
builder, so that `tfds.load` and `tfds.builder` find it by name.
"""
