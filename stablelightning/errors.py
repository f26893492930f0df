"""The exception tree: every error states the rule, what was received and the remedy, in one line.

Each class is also a subclass of the fitting builtin, so that ``except ValueError`` keeps working.
"""


class StableLightningError(Exception):
    """Root of everything that this package raises on purpose."""


class RecipeError(StableLightningError, ValueError):
    """A setting is out of its range, misspelt, or contradicts another setting."""


class DataError(StableLightningError, ValueError):
    """Data does not have the shape, columns or values that were promised."""


class ModelError(StableLightningError, TypeError):
    """A model cannot be used in the way that was asked for."""


class NothingRandomError(StableLightningError, RuntimeError):
    """Sampling was asked of a model in which nothing is random."""


class EngineError(StableLightningError, RuntimeError):
    """The sampling engine that was asked for by name cannot run this model."""


class DivergedError(StableLightningError, RuntimeError):
    """Training was given up: it diverged again after every remedy that was allowed."""


class CheckpointError(StableLightningError, RuntimeError):
    """A checkpoint does not fit the model, or cannot be read."""


class OutputError(StableLightningError, OSError):
    """An output folder or file cannot be written."""


class MissingPackageError(StableLightningError, ImportError):
    """An optional package is missing or broken; the message names the extra that brings it."""


class StableLightningWarning(UserWarning):
    """Something worth knowing happened, and the run goes on."""
