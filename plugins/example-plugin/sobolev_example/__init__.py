"""A plugin of `sobolev`."""
