"""Image augmentation as pure functions of a key and one image.

An image is float32 (H, W, 3), RGB in [0, 1]. `color`, `geometry` and
`autoaugment` hold the operations on one image; `pipelines` augments a batch for
each stage, and `mix` blends the images of a batch. A random operation takes
(key, image, settings) and draws from its own key.
"""
