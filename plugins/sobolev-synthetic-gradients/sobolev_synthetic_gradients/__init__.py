"""Synthetic gradients (paper, section 4.3): a network trained in parts, by derivatives of predictors of its loss."""
