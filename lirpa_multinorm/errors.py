"""Errors of the package: each names the argument, the value seen and the remedy."""


class LirpaMultinormError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidArgumentError(LirpaMultinormError, ValueError):
    """An argument has a value, shape, dtype or device that cannot be used."""


class UnsupportedModelError(LirpaMultinormError, NotImplementedError):
    """The model cannot be bounded: an operator or an output the host does not know."""


class NaNBoundError(LirpaMultinormError, ArithmeticError):
    """A bound came out as NaN; it is never reported as a certificate."""


class HostImportError(LirpaMultinormError, ImportError):
    """auto_LiRPA is missing or cannot be imported."""


class DatasetNotFoundError(LirpaMultinormError, FileNotFoundError):
    """A data set is neither on disk nor downloadable."""


class OutputFolderError(LirpaMultinormError, OSError):
    """An output folder cannot be created or written."""


class CheckpointError(LirpaMultinormError, RuntimeError):
    """A checkpoint is damaged or belongs to another architecture."""


class ProcessGroupError(LirpaMultinormError):
    """A process of a distributed run is missing or was lost."""


class RecordsError(LirpaMultinormError, ValueError):
    """Records of a certification are missing, there already, or another certification's."""


class NotEnoughMemoryError(LirpaMultinormError, MemoryError):
    """Memory runs out even for a single image."""


class MissingPackageError(LirpaMultinormError, ImportError):
    """An optional package that something needs is not installed."""
