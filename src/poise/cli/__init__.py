"""The command line: one file a verb."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from poise.cli.compare import compare_samplers
from poise.cli.dataset import dataset
from poise.cli.demo import demo
from poise.cli.evaluate import evaluate
from poise.cli.inspect import inspect
from poise.cli.interop import export_policy, import_policy
from poise.cli.push import push
from poise.cli.sweep import sweep
from poise.cli.train import train_recipe


def train(recipe: Annotated[Path, tyro.conf.Positional]) -> None:
    """Learn a policy from demonstrations; poise train RECIPE --help lists the options of a recipe.

    Args:
        recipe: Python file that ends in 'recipe = Recipe(...)'.
    """
    train_recipe([str(recipe)])


def main() -> None:
    """Run `poise VERB ...`; what is wrong with the input ends in one line on stderr and exit status 2."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["train"]:
            train_recipe(arguments[1:])  # whose options depend on the recipe
        else:
            tyro.extras.subcommand_cli_from_dict(
                {
                    "compare": compare_samplers,
                    "dataset": dataset,
                    "demo": demo,
                    "evaluate": evaluate,
                    "export": export_policy,
                    "import": import_policy,
                    "inspect": inspect,
                    "push": push,
                    "sweep": sweep,
                    "train": train,
                },
                prog="poise",
                description="From noise to poise: diffusion policies for robots, from demonstrations to closed loop.",
                args=arguments,
            )
    except (ValueError, FileNotFoundError, FileExistsError, ImportError, FloatingPointError) as error:
        print(f"poise: {error}", file=sys.stderr)
        sys.exit(2)


__all__ = ["main", "train"]
