"""A page that shows what a server does now: plans, times, counts. It loads nothing from elsewhere."""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from poise.policies import Policy
from poise.serving.batching import KINDS
from poise.serving.planning import Served

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_PLANS, _TIMES, _ROBOTS, _SHOWN = 6, 240, 64, 12  # kept a robot and in all, and robots kept and shown
_SILENT, _RECENT = 60.0, 10.0  # seconds: after which a robot is shown no more; that a rate is taken over
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What the page may do, and who may have it."""


class _Time(NamedTuple):
    at: float
    infer_ms: float
    queue_ms: float
    batch: int


@dataclass
class _Robot:
    at: float = 0.0
    episode: int = 0
    plan: int = 0
    changed: int = 0
    plans: deque[NDArray[np.float32]] = field(default_factory=lambda: deque(maxlen=_PLANS))


class Dashboard:
    """An `Observer` that keeps the last plans and times, and the page that shows them.

    Args:
        policy: What is served.
    """

    def __init__(self, policy: Policy) -> None:
        spec = policy.spec
        self._about = {"policy": type(policy).__name__, "execute": spec.execute, "planned": spec.planned}
        self._begun, self._changed, self._interventions = time.monotonic(), 0, Counter[str]()
        self._lock = threading.Lock()  # the planner's thread writes, the server's reads
        self._times: deque[_Time] = deque(maxlen=_TIMES)
        self._robots: dict[tuple[Hashable, Hashable], _Robot] = {}  # in the order that they came in

    def __call__(self, served: Served) -> None:
        """Take note of one plan."""
        planned, turn, now = served.planned, served.planned.turn, time.monotonic()
        key = served.client, served.request.robot
        with self._lock:
            self._interventions += planned.interventions
            if planned.interventions["rejected"]:  # it was not sent
                return
            robot = self._robots.get(key)
            if robot is None and len(self._robots) >= _ROBOTS:
                self._robots = {name: one for name, one in self._robots.items() if now - one.at < _SILENT}
            if robot is None or turn.episode != robot.episode:
                robot = _Robot()
            robot.at, robot.episode, robot.plan = now, turn.episode, turn.plan
            robot.changed += planned.changed
            robot.plans.append(planned.actions)
            if key in self._robots or len(self._robots) < _ROBOTS:
                self._robots[key] = robot
            self._changed += planned.changed
            self._times.append(_Time(now, 1e3 * planned.seconds, 1e3 * planned.waited, planned.batch))

    def page(self, path: str, counts: Mapping[str, float], connections: int) -> tuple[str, bytes] | None:
        """The type and the bytes of a file of the page, or of `/state`; None for any other path.

        Args:
            path: Of the request.
            counts: Of the server.
            connections: That are open.
        """
        if path == "/state":
            state = {**self._state(), "counts": dict(counts), "connections": connections}
            return "application/json", json.dumps(state, default=int, separators=(",", ":")).encode()
        if path not in _FILES:
            return None
        name, kind = _FILES[path]
        return kind, (Path(__file__).parent / name).read_bytes()

    def _state(self) -> dict[str, Any]:
        now = time.monotonic()
        with self._lock:
            times = list(self._times)
            alive = [(key, robot) for key, robot in self._robots.items() if now - robot.at < _SILENT]
            robots = [_shown(key, robot, now) for key, robot in alive[:_SHOWN]]
            changed, interventions = self._changed, {kind: self._interventions[kind] for kind in KINDS}
        total = [one.infer_ms + one.queue_ms for one in times]
        median, high = np.percentile(total, (50, 95)).tolist() if total else (None, None)
        recent = sum(now - one.at < _RECENT for one in times)
        # Of a rate beyond what is kept only those that are kept are known, and since when.
        span = min(_RECENT, now - self._begun, now - times[0].at if len(times) == _TIMES else _RECENT)
        return {
            **self._about,
            "seconds": now - self._begun,
            "changed": changed,
            "interventions": interventions,
            "rate": recent / max(span, 1e-3),
            "latency": {"median": median, "p95": high},
            "infer_ms": [round(one.infer_ms, 3) for one in times],
            "queue_ms": [round(one.queue_ms, 3) for one in times],
            "batch": [one.batch for one in times],
            "robots": robots,
            "hidden": len(alive[_SHOWN:]),
        }


def _shown(key: tuple[Hashable, Hashable], robot: _Robot, now: float) -> dict[str, Any]:
    return {
        "client": key[0],
        "robot": key[1],
        "episode": robot.episode,
        "plan": robot.plan,
        "changed": robot.changed,
        "silent": now - robot.at,
        "plans": [np.round(plan, 5).astype(float).tolist() for plan in robot.plans],
    }


__all__ = ["HEADERS", "Dashboard"]
