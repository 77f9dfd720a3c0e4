"""Everything this library raises on bad input; each message says what to do next."""

from pathlib import Path


class ComposerError(Exception):
    """A request the library cannot meet."""


class InvalidMixError(ComposerError):
    """A mix that cannot be read or that the bank cannot serve.

    `position` is the offending character of an expression, counted from 0, where one is to blame.
    """

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class InvalidMethodError(ComposerError):
    """A merge method that is unknown, or given parameters or tasks it does not take."""


class InvalidSchemeError(ComposerError):
    """A scheme that is unknown, not available, or given options it does not take."""


class BankFormatError(ComposerError):
    """A bank that is damaged, incomplete, or written in a format this version cannot read."""

    def __init__(
        self, message: str, *, path: Path | None = None, tensor: str | None = None
    ) -> None:
        places = [str(path)] if path is not None else []
        places += [f"tensor {tensor}"] if tensor is not None else []
        super().__init__(": ".join([*places, message]))
        self.path = path
        self.tensor = tensor


class BankExistsError(ComposerError):
    """The output path is taken."""


class BankBusyError(ComposerError):
    """Another process is writing to the bank."""


class BaseMismatchError(ComposerError):
    """A base model, or a fine-tuned one, that does not belong to the bank's base."""


class CheckpointError(ComposerError):
    """A model or adapter directory that is damaged, incomplete or of an unsupported kind."""


class UnknownTaskError(ComposerError):
    """A task name the bank has no entry for."""


class TaskExistsError(ComposerError):
    """A task name the bank already has an entry for."""


class MissingGramError(ComposerError):
    """A method that needs the table of inner products, and a bank without one."""


class UnarchivedError(ComposerError):
    """A task whose original weights are needed and not in the bank."""


class InvalidPlanError(ComposerError):
    """A plan that cannot be read, met, or used with these tasks."""
