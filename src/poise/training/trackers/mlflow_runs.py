"""Figures for MLflow (extra `mlflow`), in a database in the folder of the run unless `MLFLOW_TRACKING_URI` names one.

mlflow ui --backend-store-uri sqlite:///out/pusht/mlflow.db
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tracker import PROJECT, Tracker, flat, remembered

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]


class MLflow(Tracker):
    """A run of the experiment `poise`, its specs in the artifact about.json.

    MLflow forgets no point: after a resume, those that the killed run was ahead by are there twice.
    """

    NEEDS = "mlflow.tracking", "mlflow"

    def __init__(self) -> None:
        self._client: MlflowClient | None = None
        self._id = ""

    def open(self, run: Path, about: Mapping[str, Any], step: int) -> None:
        """Begin a run, or go on with the one of the same id."""
        self.check()
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.resolve()}/mlflow.db")
        self._client = client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(PROJECT)
        place = None if "MLFLOW_TRACKING_URI" in os.environ else (run.resolve() / "mlflow").as_uri()
        experiment = known.experiment_id if known else client.create_experiment(PROJECT, artifact_location=place)
        name = run.resolve().name
        self._id = remembered(run, "mlflow", step, lambda: client.create_run(experiment, run_name=name).info.run_id)
        client.log_dict(self._id, dict(about), "about.json")

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add a point to every curve."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        assert self._client is not None
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in flat(figures).items()])

    def close(self) -> None:
        """Mark the run as finished."""
        if self._client is not None:
            self._client.set_terminated(self._id)


__all__ = ["MLflow"]
