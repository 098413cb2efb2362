"""MLflow."""

import json
import logging
import os
from collections.abc import Mapping, Sequence

from distilltool.trackers import Given, Point, Tracker

NEEDS = "mlflow"
EXPERIMENT = "distilltool"
AT_ONCE = 500  # metrics in a request; servers take 1,000
PARAMETERS = 100  # parameters in a request
LONGEST = 500  # characters of a parameter that every version of it takes


def mlflow(given: Given) -> Tracker:
    """A run of MLflow: where MLFLOW_TRACKING_URI says, else in a database of its own inside the run."""
    return _Run(given)


class _Run:
    def __init__(self, given: Given) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would call home
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it set its own level when it was loaded
        logging.getLogger("alembic").setLevel(logging.WARNING)

        self.told = given.step
        given.folder.mkdir(parents=True, exist_ok=True)
        own = f"sqlite:///{(given.folder / 'mlflow.db').resolve()}"
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or own)
        known = given.folder / "run.json"
        if given.step is not None and known.exists():
            self.id = str(json.loads(known.read_text("utf-8"))["run_id"])
            self.client.update_run(self.id, status="RUNNING")
            return
        self.id = self.client.create_run(self._experiment(given), run_name=given.name).info.run_id
        known.write_text(json.dumps({"run_id": self.id}), "utf-8")
        self._say(given)

    def _experiment(self, given: Given) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        files = None if elsewhere else (given.folder / "artifacts").resolve().as_uri()
        return str(self.client.create_experiment(name, artifact_location=files))

    def _say(self, given: Given) -> None:
        from mlflow.entities import Param

        said = [Param(_named(name), str(value)[:LONGEST]) for name, value in given.settings.items()]
        for at in range(0, len(said), PARAMETERS):
            self.client.log_batch(self.id, params=said[at : at + PARAMETERS])

    def log(self, points: Sequence[Point]) -> None:
        """Metrics with their steps and times."""
        from mlflow.entities import Metric

        every = [
            Metric(_named(name), value, round(1000 * point.time), point.step)
            for point in points
            for name, value in point.figures.items()
        ]
        for at in range(0, len(every), AT_ONCE):
            self.client.log_batch(self.id, metrics=every[at : at + AT_ONCE])

    def finish(self, figures: Mapping[str, float]) -> None:
        """Metrics without a step of their own."""
        for name, value in figures.items():
            self.client.log_metric(self.id, _named(name), value)
        self.client.set_terminated(self.id, "FINISHED")

    def stop(self) -> None:
        """The run is not finished."""
        self.client.set_terminated(self.id, "KILLED")


def _named(name: str) -> str:
    """A name in the letters that MLflow takes: overlap@10 → overlap_at_10."""
    return "".join(char if char.isalnum() or char in "_-. /" else "_" for char in name.replace("@", "_at_"))
