"""Weights & Biases."""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from typing import Literal
from urllib.parse import urlsplit

from distilltool.trackers import Given, Point, Tracker

NEEDS = "wandb"
PROJECT = "distilltool"
HOST = "https://api.wandb.ai"


def wandb(given: Given) -> Tracker:
    """A run of Weights & Biases: online where you are logged in or WANDB_MODE says so, else files inside the run, which
    `wandb sync` sends."""
    return _Run(given)


class _Run:
    def __init__(self, given: Given) -> None:
        mode = how()
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would call home
        import wandb

        # a killed process leaves half of its file, which cannot be gone on with: it is written anew
        self.told = None if mode == "offline" else given.step
        if self.told is None:
            shutil.rmtree(given.folder / "wandb", ignore_errors=True)
        given.folder.mkdir(parents=True, exist_ok=True)
        known = given.folder / "run.json"
        if given.step is None or not known.exists():
            known.write_text(json.dumps({"id": secrets.token_hex(4)}), "utf-8")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=given.name,
            id=str(json.loads(known.read_text("utf-8"))["id"]),
            resume=None if mode == "offline" else "allow",
            dir=str(given.folder.resolve()),  # it is read by a process that may have been started elsewhere
            mode=mode,
            config=dict(given.settings),
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )

    def log(self, points: Sequence[Point]) -> None:
        """A row of its history for each step."""
        rows = dict[int, dict[str, float]]()
        for point in points:
            rows.setdefault(point.step, {}).update(point.figures)
        for step, row in rows.items():
            self.run.log(row, step=step, commit=True)  # or a row waits for the next one, and is lost with the process

    def finish(self, figures: Mapping[str, float]) -> None:
        """The run's summary."""
        self.run.summary.update(dict(figures))
        self.run.finish()

    def stop(self) -> None:
        """Write what is left; 255 is how it marks what was interrupted."""
        self.run.finish(exit_code=255)


def how() -> Literal["offline"] | None:
    """Offline, but None where the user's environment says otherwise, by WANDB_MODE, a key, or a login."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun"):
        return "offline"
    if mode or os.environ.get("WANDB_API_KEY"):
        return None
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or HOST).hostname or ""
    with suppress(OSError, NetrcParseError):
        if host in netrc(os.environ.get("NETRC")).hosts:
            return None
    return "offline"
