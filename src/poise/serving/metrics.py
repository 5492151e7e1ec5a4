"""Figures of a server in the text format of Prometheus (extra `metrics`)."""

from collections.abc import Mapping
from typing import Any

from poise.extras import extra
from poise.serving.batching import KINDS

FIGURES = {
    "connections_opened": "Connections that were opened.",
    "connections_refused": "Connections that were refused: no place, or no key.",
    "requests": "Observations that came.",
    "plans": "Plans that were sent.",
    "changed": "Actions that filters and limits changed.",
    "superseded": "Observations that a newer one of the same robot took the place of.",
    "unrecorded": "Plans that are not in the record, for the disk was too slow or full.",
    "errors": "Errors that were sent, each of which ended a connection.",
    "infer_seconds": "Seconds that plans took, each that of its whole batch.",
    "wait_seconds": "Seconds that plans waited before.",
}
"""What a server counts: name -> what it is."""


def exposition(counts: Mapping[str, float], interventions: Mapping[str, float], gauges: Mapping[str, float]) -> bytes:
    """The figures, for `GET /metrics`.

    Args:
        counts: Of the names of `FIGURES`.
        interventions: Of `KINDS`; none where they are missing.
        gauges: What rises and falls: name -> value.

    Raises:
        ImportError: prometheus-client is missing.
    """
    library = _library()
    registry = library.CollectorRegistry()
    for name, about in FIGURES.items():
        library.Counter(f"poise_{name}", about, registry=registry).inc(counts[name])
    about = "Actions of plans that wanted to break a limit, by the limit, and plans that were rejected."
    kinds = library.Counter("poise_interventions", about, ["kind"], registry=registry)
    for kind in KINDS:
        kinds.labels(kind).inc(interventions.get(kind, 0))
    for name, value in gauges.items():
        library.Gauge(f"poise_{name}", "Now.", registry=registry).set(value)
    return library.generate_latest(registry)


def _library() -> Any:
    with extra("metrics", "/metrics needs"):
        import prometheus_client
    return prometheus_client


__all__ = ["FIGURES", "exposition"]
