"""Image augmentation as pure functions of one image and a key.

An image is float32 (H, W, 3), RGB in [0, 1]. `color` and `geometry` hold the
operations on ONE image, batched by vmap where they are used; `views` makes the
pretraining views of a batch, `policies` the fine-tuning ones, and `mix` blends
the images of a batch with each other.
"""
