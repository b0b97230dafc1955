"""The target ``blackbox``: a Python function of numbers, found by the name of an entry point."""
