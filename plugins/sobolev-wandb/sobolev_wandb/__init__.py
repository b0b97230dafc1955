"""Weights & Biases tracker for `sobolev`."""
