"""The speed of training steps: measured here, or estimated by compilers."""
