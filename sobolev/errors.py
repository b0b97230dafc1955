"""Errors that are shown to people: a message, no traceback, exit code 2."""


class SobolevError(Exception):
    """A mistake that its user can mend; the message says what, where, what was expected and what to do."""


class RecipeError(SobolevError):
    """One or more problems of a recipe, each with its place ``file:line:column``."""


class PluginError(SobolevError):
    """A plugin that cannot be loaded, an unknown hook, or two plugins that claim one name."""


class ComponentError(SobolevError):
    """A component that breaks its contract, or parts that do not fit together."""


class DataError(SobolevError):
    """Data that cannot be read, or that contradict themselves; names file, row and column."""


class NonFiniteError(SobolevError):
    """A NaN or an infinity that something computed; names the tensor and the samples."""


class DerivativeError(SobolevError):
    """A derivative that cannot be taken, or whose parameter gradient would be wrong; names the layer."""


class RunError(SobolevError):
    """A run that cannot go on for a reason outside it, such as a full disk; says what to do."""


class CheckpointError(SobolevError):
    """No valid checkpoint where one is needed."""
