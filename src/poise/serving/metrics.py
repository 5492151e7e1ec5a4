"""Figures of a server in the text format of Prometheus (extra `metrics`)."""

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from poise.extras import extra
from poise.serving.batching import KINDS

FIGURES = {
    "connections_opened": "Connections that were opened.",
    "connections_refused": "Connections that were refused: no place, no key, or no memory left for clients.",
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

BUCKETS = 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, float("inf")
"""Upper ends of what times are sorted into, in seconds."""


class Latencies:
    """How long clients waited for their plans, as a histogram.

    Attributes:
        counts: Plans of each of `BUCKETS`, without those of the shorter ones.
        seconds: Of all plans together.
    """

    def __init__(self) -> None:
        self.counts, self.seconds = [0] * len(BUCKETS), 0.0

    def add(self, seconds: float) -> None:
        """Count a plan."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.seconds += seconds

    def collect(self) -> list[Any]:
        """As Prometheus wants it.

        Raises:
            ImportError: prometheus-client is missing.
        """
        about = "Seconds of a plan from the arrival of its observation to the reply."
        ends = ["+Inf" if end == BUCKETS[-1] else str(end) for end in BUCKETS]
        buckets = list(zip(ends, map(float, accumulate(self.counts)), strict=True))
        return [_library().metrics_core.HistogramMetricFamily("poise_plan_seconds", about, buckets, self.seconds)]


def exposition(
    counts: Mapping[str, float], interventions: Mapping[str, float], latencies: Latencies, gauges: Mapping[str, float]
) -> bytes:
    """The figures, for `GET /metrics`.

    Args:
        counts: Of the names of `FIGURES`.
        interventions: Of `KINDS`; none where they are missing.
        latencies: Of the plans that were sent.
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
    registry.register(latencies)
    for name, value in gauges.items():
        library.Gauge(f"poise_{name}", "Now.", registry=registry).set(value)
    return library.generate_latest(registry)


def _library() -> Any:
    with extra("metrics", "/metrics needs"):
        import prometheus_client
    return prometheus_client


__all__ = ["BUCKETS", "FIGURES", "Latencies", "exposition"]
