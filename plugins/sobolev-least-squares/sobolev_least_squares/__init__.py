"""Derivatives from scattered samples by local least squares, for `sobolev`."""
