r"""Demonstrations by scripted experts, an episode a seed.

So that the data cover recoveries, noise disturbs the robot, not the labels (DART: Laskey et al. 2017, arXiv
1703.09327): the robot executes the expert's action plus noise, the data hold the action without it. The noise is
correlated over a few steps, as disturbances are,

$$ e_{k+1} = \rho e_k + \sqrt{1 - \rho^2}\, \epsilon_k, \qquad \rho = e^{-1/2}. $$
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

from poise.applications.application import Application
from poise.data import Episodes
from poise.data.facts import Facts, Role

_CORRELATION = 2.0  # control steps


@dataclass(frozen=True)
class Driven:
    """One attempt of an expert.

    Attributes:
        seed: Of the environment, the expert and the noise.
        success: Whether the environment said so at the end.
        stage: Where the expert ended.
        collision: Where the environment tells, else None.
        mode: The way it took, where the environment tells, else None.
        rows: Features and `action`, `(steps, ...)`.
        measures: What else the environment measured.
    """

    seed: int
    success: bool
    stage: str
    collision: bool | None
    mode: int | None
    rows: dict[str, NDArray[Any]]
    measures: dict[str, float]


class Driver:
    """An expert in an environment of its own.

    Args:
        application: What is demonstrated.
        noise: Deviation of the disturbance; None means that of the application.
    """

    def __init__(self, application: Application, noise: float | None = None) -> None:
        self.application, self.expert = application, application.expert()
        self.noise = application.noise if noise is None else noise
        if self.noise < 0:
            raise ValueError(f"got a noise of {self.noise}, expected at least 0")
        self._envs = application.task.make(1)
        space: Any = self._envs.single_action_space
        self._limits = space.low, space.high

    def drive(self, seeds: Sequence[int]) -> Iterator[Driven]:
        """One attempt a seed; what happens depends on the seed alone."""
        for seed in seeds:
            yield self._drive(seed)

    def close(self) -> None:
        """Free the environment."""
        self._envs.close()

    def _drive(self, seed: int) -> Driven:
        task, generator = self.application.task, np.random.default_rng([seed, 1])
        envs: Any = self._envs
        raw, infos = envs.reset(seed=[seed])
        self.expert.reset(envs.envs[0].unwrapped if isinstance(envs, SyncVectorEnv) else envs, seed)
        shaken, rho = [*self.application.shaken], np.exp(-1 / _CORRELATION)
        disturbance = self.noise * generator.standard_normal(len(shaken))
        steps, over = [], False
        while not over:
            action = np.asarray(self.expert.act({name: values[0] for name, values in raw.items()}), np.float32)
            seen = task.observe(raw)
            steps.append({name: seen[name][0] for name in self.application.features} | {"action": action})
            executed = action.copy()
            executed[shaken] += disturbance
            raw, _, terminated, truncated, infos = envs.step(np.clip(executed, *self._limits)[None])
            over = bool(terminated[0] or truncated[0])
            fresh = generator.standard_normal(len(shaken))
            disturbance = rho * disturbance + np.sqrt(1 - rho**2) * self.noise * fresh
        return Driven(
            seed=seed,
            success=bool(infos["is_success"][0]),
            stage=self.expert.stage,
            collision=bool(infos["collision"][0]) if "collision" in infos else None,
            mode=int(infos["mode"][0]) if "mode" in infos else None,
            rows={name: np.stack([step[name] for step in steps]) for name in steps[0]},
            measures={name: float(values[0]) for name, values in infos.get("measures", {}).items() if name[0] != "_"},
        )


def joined(application: Application, driven: Sequence[Driven]) -> Episodes:
    """Attempts as episodes, which keep the name of the application and the way taken."""
    rows = {name: np.concatenate([one.rows[name] for one in driven]) for name in driven[0].rows}
    lengths = np.array([len(one.rows["action"]) for one in driven])
    if application.modes:
        rows["mode"] = np.repeat(np.array([[one.mode] for one in driven], np.float32), lengths, axis=0)
    roles = dict.fromkeys(application.features, Role.OBSERVATION) | {"action": Role.ACTION}
    facts = Facts(application.rate, application.name, roles)
    return Episodes(rows, lengths.cumsum(), (application.name,) * len(driven), facts)


__all__ = ["Driven", "Driver", "joined"]
