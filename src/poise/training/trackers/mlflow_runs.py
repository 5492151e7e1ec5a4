"""Figures for MLflow (extra `mlflow`), in a database in the folder of the run unless `MLFLOW_TRACKING_URI` names one.

mlflow ui --backend-store-uri sqlite:///out/pusht/mlflow.db
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.training.trackers.tool import Tool
from poise.training.trackers.tracker import PROJECT, remembered

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]


class MLflow(Tool):
    """A run of the experiment `poise`, its specs in the artifact about.json.

    MLflow forgets no point. Those that a killed run was ahead by stay, and the resumed run does not repeat them.
    """

    NEEDS = "mlflow.tracking", "mlflow"
    QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true"}

    def __init__(self) -> None:
        super().__init__()
        self._client: MlflowClient | None = None
        self._id = ""

    def _begin(self, run: Path, about: Mapping[str, Any], step: int) -> int:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.resolve()}/mlflow.db")
        self._client = client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(PROJECT)
        place = None if "MLFLOW_TRACKING_URI" in os.environ else (run.resolve() / "mlflow").as_uri()
        experiment = known.experiment_id if known else client.create_experiment(PROJECT, artifact_location=place)
        name = run.resolve().name
        self._id = remembered(run, "mlflow", step, lambda: client.create_run(experiment, run_name=name).info.run_id)
        client.update_run(self._id, status="RUNNING")  # a run that was stopped has ended
        client.log_dict(self._id, dict(about), "about.json")
        curves = client.get_run(self._id).data.metrics
        return 1 + max(
            (point.step for curve in curves for point in client.get_metric_history(self._id, curve)), default=0
        )

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        assert self._client is not None
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in values.items()])

    def _end(self) -> None:
        assert self._client is not None
        self._client.set_terminated(self._id)


__all__ = ["MLflow"]
