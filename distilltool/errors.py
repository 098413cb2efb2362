"""What a user can mend, and how a command ends."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    FIX = 1
    USAGE = 2
    GATE = 3
    NOISY = 4
    INTERRUPTED = 130


class DistillError(Exception):
    """A fault the user can mend: one line that says what, one that says how.

    Anything else that is raised is a bug of ours and keeps its traceback.
    """

    def __init__(self, message: str, fix: str, code: Exit = Exit.FIX) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.code = code

    def __str__(self) -> str:
        return f"{self.message}: {self.fix}"


class OutOfMemory(DistillError):
    """A model needs more memory for a batch than there is; a smaller batch may do."""


class NoStudent(DistillError):
    """Nothing at hand keeps to what a student may cost."""


class Unsure(DistillError):
    """A teacher was asked and no usable answer came back: it may have been given, and charged for, all the same."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a termination signal, raised once the work in hand is safe on disk."""

    def __init__(self, kept: str) -> None:
        super().__init__(kept)
        self.kept = kept
