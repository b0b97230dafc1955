"""The target ``module``: any torch network as a frozen teacher."""
