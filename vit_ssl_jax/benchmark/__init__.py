"""Throughput of training steps, measured or estimated."""
