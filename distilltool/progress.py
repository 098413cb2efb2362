"""How long work tells whoever watches how far it is; the stages call this and never print."""

import logging
from typing import Protocol


class Progress(Protocol):
    """One piece of work at a time, with a rate; a total of 0 is not known beforehand. A `note` stays on the screen.

    begin: done is what was done before, at another time. expect: the total turns out to be another.
    """

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None: ...
    def expect(self, total: int) -> None: ...
    def advance(self, amount: int = 1, detail: str = "") -> None: ...
    def end(self) -> None: ...
    def note(self, message: str) -> None: ...
    def warn(self, message: str) -> None: ...


class Silent:
    """Shows nothing, for the library; notes and warnings go to the logger `distilltool`."""

    def begin(self, what: str, total: int, unit: str, done: int = 0) -> None:
        pass

    def expect(self, total: int) -> None:
        pass

    def advance(self, amount: int = 1, detail: str = "") -> None:
        pass

    def end(self) -> None:
        pass

    def note(self, message: str) -> None:
        logging.getLogger("distilltool").info(message)

    def warn(self, message: str) -> None:
        logging.getLogger("distilltool").warning(message)
