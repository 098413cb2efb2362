"""TensorBoard event files."""

from collections.abc import Mapping, Sequence
from typing import Any

from distilltool.trackers import Given, Point, Setting, Tracker

NEEDS = "tensorboard"


def tensorboard(given: Given) -> Tracker:
    """Event files inside the run, which `tensorboard --logdir RUN` shows."""
    return _Board(given)


class _Board:
    def __init__(self, given: Given) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what an earlier process wrote beyond the last step that is known to be told is taken back
        begun = given.folder.is_dir() and any(given.folder.glob("events.*"))
        purge = (0 if begun else None) if given.step is None else given.step + 1
        self.told = given.step
        self.settings = given.settings
        self.writer: Any = SummaryWriter(str(given.folder), purge_step=purge)
        if given.step is None:
            self.writer.add_text("settings", _table(given.settings))

    def log(self, points: Sequence[Point]) -> None:
        """Scalars at their own times, flushed."""
        for point in points:
            for name, value in point.figures.items():
                self.writer.add_scalar(name, value, point.step, walltime=point.time)
        self.writer.flush()

    def finish(self, figures: Mapping[str, float]) -> None:
        """The figures beside the settings, as the page HPARAMS compares them between runs."""
        from torch.utils.tensorboard.summary import hparams

        for name, value in figures.items():
            self.writer.add_scalar(name, value, 0)
        for summary in hparams(dict(self.settings), dict(figures)):  # type: ignore[no-untyped-call]
            self.writer.file_writer.add_summary(summary)
        self.stop()

    def stop(self) -> None:
        """Write what is left."""
        self.writer.close()


def _table(settings: Mapping[str, Setting]) -> str:
    """The settings as a Markdown table."""
    cells = [(name, str(value).replace("|", "\\|").replace("\n", " ")) for name, value in settings.items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in cells)])
