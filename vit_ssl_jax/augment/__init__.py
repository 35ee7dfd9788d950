"""Image augmentation as pure functions of a key and one image.

An image is float32 (H, W, 3), RGB in [0, 1]. `color`, `geometry` and
`autoaugment` hold the operations on one image; `multi_crop` makes the
pretraining views of a batch, `supervised` the fine-tuning ones, and `mix`
blends the images of a batch with each other. A random operation takes
(key, image, settings) and draws from its own key.
"""
