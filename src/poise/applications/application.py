"""One application: a task, the expert that demonstrates it, and the recipe that learns it from demonstrations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from poise.data import Episodes, read
from poise.envs.experts import Expert
from poise.evaluation import Task
from poise.policies import PolicySpec
from poise.recipe import Recipe
from poise.training import TrainingSpec

FOLDER = Path("out/demonstrations")
"""Where `poise collect` writes, and recipes look, unless they are told."""


@dataclass(frozen=True)
class Application:
    """A task that anyone can run.

    Attributes:
        name: On the command line.
        about: What is to be done, in a sentence.
        area: What it is an example of, such as grasping.
        task: Where policies and the expert are tried.
        features: What policies see, as `task.observe` gives it: name -> shape.
        action: Number of action dimensions.
        rate: Control steps a second.
        expert: Makes the expert.
        rivals: Other scripted controllers that are tried beside it, by name.
        noise: Deviation of what disturbs the expert's actions in demonstrations, in units of the action.
        shaken: The dimensions of the action that it disturbs.
        modes: Names of the ways to do it, by the number that the environment tells; none where there is one way.
        episodes: Demonstrations that the recipe learns from.
        policy: Fields of `PolicySpec` that differ from its defaults.
        training: How the recipe learns.
    """

    name: str
    about: str
    area: str
    task: Task
    features: Mapping[str, tuple[int, ...]]
    action: int
    rate: float
    expert: Callable[[], Expert]
    rivals: Mapping[str, Callable[[], Expert]] = field(default_factory=dict)
    noise: float = 0.0
    shaken: tuple[int, ...] = ()
    modes: Mapping[int, str] = field(default_factory=dict)
    episodes: int = 100
    policy: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingSpec = TrainingSpec(bfloat16=True)

    @property
    def file(self) -> Path:
        """Where its demonstrations are, unless the recipe is told."""
        return FOLDER / f"{self.name}.npz"

    def recipe(self) -> Recipe:
        """The recipe, which reads demonstrations of `poise collect`."""
        spec = PolicySpec(self.features, self.action, **self.policy)
        return Recipe(spec, self.training, self.task, partial(demonstrations, self))


def demonstrations(application: Application, path: Path | None) -> Episodes:
    """Demonstrations of an application.

    Args:
        application: Which.
        path: Where `poise collect` wrote them; None stands for where it does by itself.

    Raises:
        FileNotFoundError: Nothing is there yet.
        ValueError: They are of another task.
    """
    path = path or application.file
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist, expected demonstrations of {application.name}: poise collect {application.name}"
        )
    episodes = read(path)
    told = sorted(set(episodes.tasks) - {application.name})
    if told:
        raise ValueError(
            f"{path} holds demonstrations of {', '.join(told)}, expected those of {application.name}: "
            f"poise collect {application.name}"
        )
    return episodes


__all__ = ["FOLDER", "Application", "demonstrations"]
