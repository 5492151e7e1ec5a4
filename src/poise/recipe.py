"""A recipe: everything that makes one policy, in one Python file whose last name is a frozen `Recipe`."""

import difflib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data import Episodes, Windows
from poise.data.mapped import is_mapped
from poise.evaluation import Task
from poise.policies import PolicySpec
from poise.training import TrainingSpec

_ORDER = 43  # seed of the order in which demonstrations are drawn


def as_recorded(episodes: Episodes) -> Episodes:
    """Episodes as they are."""
    return episodes


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
        episodes: Demonstrations to train on, of those that are not held out; None means all. They are drawn by one
            fixed order, so that fewer are among more and the held-out ones stay the same: what a study of data
            efficiency varies.
        enlarge: What the chosen demonstrations become to train on, such as they and their mirror images.
        padded: Largest number of padded actions of a training window; None means `horizon - 1`.
    """

    policy: PolicySpec
    training: TrainingSpec
    task: Task
    read: Callable[[Path | None], Episodes]
    validation: float = 0.02
    episodes: int | None = None
    enlarge: Callable[[Episodes], Episodes] = as_recorded
    padded: int | None = None

    def demonstrations(self, data: Path | None) -> tuple[Episodes, Episodes]:
        """Read the episodes to train on and those held out.

        Args:
            data: Where to read; None stands for the default source.

        Raises:
            ValueError: More episodes asked for than there are.
        """
        everything = self.read(data)
        training, validation = self._divided(everything)
        return self.enlarge(everything.select(training)), everything.select(validation)

    def parts(self, data: Path | None, device: str = "cpu") -> tuple[Windows, Windows]:
        """The windows of `demonstrations`, on the device that the policy is trained on.

        Features that are memory-mapped stay in their files, and the constants of normalisation then come from all of
        their rows.

        Args:
            data: As there.
            device: Where batches are made.

        Raises:
            ValueError: As there.
        """
        everything = self.read(data)
        training, validation = self._divided(everything)
        mapped = all(is_mapped(everything.features[name]) for name in (*self.policy.observations, "action"))
        if mapped and self.enlarge is as_recorded:
            windows = self.windows(everything, device)
            return windows.only(training), windows.only(validation)
        few = self.enlarge(everything.select(training)), everything.select(validation)
        return self.windows(few[0], device), self.windows(few[1], device)

    def _divided(self, everything: Episodes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the episodes to train on and of those held out."""
        validation = everything.held_out(self.validation)
        training = np.setdiff1d(np.arange(len(everything)), validation)
        count = len(training) if self.episodes is None else self.episodes
        if not 1 <= count <= len(training):
            raise ValueError(
                f"got episodes={count}, expected 1 to {len(training)}, the demonstrations that are not held out"
            )
        order = np.random.default_rng(_ORDER).permutation(len(training))
        return training[np.sort(order[:count])], validation

    def windows(self, episodes: Episodes, device: str = "cpu") -> Windows:
        """The windows that the policy learns from, on the device that it is trained on."""
        spec = self.policy
        padded = spec.horizon - 1 if self.padded is None else self.padded
        names = tuple(spec.observations)
        return Windows(episodes, names, spec.history, spec.horizon, padded, device=device, lead=spec.lead)


def load_recipe(path: str | Path) -> Recipe:
    """Run a recipe file, which you must trust as any program, and take its `recipe`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file defines no `recipe`, or gives an object a field that it does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a Python file that ends in 'recipe = Recipe(...)'")
    spec = importlib.util.spec_from_file_location(f"poise_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file, expected one that ends in 'recipe = Recipe(...)'")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except TypeError as error:
        _explain(path, error, vars(module))
        raise
    recipe = getattr(module, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{path} defines no recipe, expected it to end in 'recipe = Recipe(...)'")
    return recipe


def _explain(path: Path, error: TypeError, names: Mapping[str, Any]) -> None:
    """Where the recipe gave one of its classes a field that it does not have, raise what it has."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if found is None or (kind := _known(found[1], names)) is None:
        return
    fields = list(inspect.signature(kind).parameters)
    close = difflib.get_close_matches(found[2], fields, n=1)
    meant = f": did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{path} gives {found[1]} the field {found[2]!r}, expected some of {fields}{meant}") from error


def _known(name: str, names: Mapping[str, Any]) -> type | None:
    """The class of a name, among those of a module or of the modules that it has imported."""
    modules = [value for value in names.values() if inspect.ismodule(value)]
    held = [names.get(name), *(getattr(module, name, None) for module in modules)]
    return next((value for value in held if inspect.isclass(value)), None)


__all__ = ["Recipe", "as_recorded", "load_recipe"]
