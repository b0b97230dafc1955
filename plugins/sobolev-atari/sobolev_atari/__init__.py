"""Distillation of policies (Atari, Gymnasium) and of classifiers, as a plugin of `sobolev`."""
