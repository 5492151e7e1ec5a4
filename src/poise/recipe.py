"""A recipe: everything that makes one policy, in one Python file whose last name is a frozen `Recipe`."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from poise.data import Episodes, Windows
from poise.evaluation import Task
from poise.policies import PolicySpec
from poise.training import TrainingSpec


@dataclass(frozen=True)
class Recipe:
    """From demonstrations to a policy and the task that it is tried on.

    Attributes:
        policy: What is learned.
        training: How.
        task: Where it is tried.
        read: Path of the data -> episodes with the features of the policy and `action`; None stands for the default
            source.
        validation: Share of the episodes held out.
        padded: Largest number of padded actions of a training window; None means `horizon - 1`.
    """

    policy: PolicySpec
    training: TrainingSpec
    task: Task
    read: Callable[[Path | None], Episodes]
    validation: float = 0.02
    padded: int | None = None

    def windows(self, episodes: Episodes) -> Windows:
        """The windows that the policy learns from."""
        spec = self.policy
        padded = spec.horizon - 1 if self.padded is None else self.padded
        return Windows(episodes, tuple(spec.observations), spec.history, spec.horizon, padded)


def load_recipe(path: str | Path) -> Recipe:
    """Run a recipe file, which you must trust as any program, and take its `recipe`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file defines no `recipe`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a Python file that ends in 'recipe = Recipe(...)'")
    spec = importlib.util.spec_from_file_location(f"poise_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file, expected one that ends in 'recipe = Recipe(...)'")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path} defines no recipe, expected it to end in 'recipe = Recipe(...)'")
    return recipe


__all__ = ["Recipe", "load_recipe"]
