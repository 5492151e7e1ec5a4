"""The command line: one file a verb, which is imported when it is asked for."""

import importlib
import sys
from typing import NamedTuple


class Verb(NamedTuple):
    """What `poise --help` knows of a verb without importing it.

    Attributes:
        module: File of this folder.
        function: In it, whose arguments are the options.
        about: First line of its docstring.
    """

    module: str
    function: str
    about: str


VERBS = {
    "applications": Verb(
        "applications",
        "applications_suite",
        "Run applications: collect demonstrations, train diffusion and regression, try both in closed loop, write a "
        "page.",
    ),
    "bench": Verb(
        "bench",
        "bench",
        "Time plans by sampler, evaluations, batch and threads, show where the time goes and what it cannot fall "
        "below.",
    ),
    "collect": Verb(
        "collect",
        "collect",
        "Write demonstrations of a task by its scripted expert, who tries consecutive seeds; successes alone are kept.",
    ),
    "compare": Verb(
        "compare",
        "compare_samplers",
        "Find out how to sample a policy: ODE or SDE, which solver, how many evaluations. Ends in a recommendation.",
    ),
    "dataset": Verb(
        "dataset",
        "dataset",
        "Look at demonstrations, examine, draw, convert and replay them: poise dataset VERB --help tells more.",
    ),
    "demo": Verb(
        "demo",
        "demo",
        "Learn to navigate among obstacles from demonstrations, prove it in closed loop and write a report.",
    ),
    "distill": Verb(
        "distill",
        "distill",
        "Distil a policy: a student learns to plan in one to three network evaluations what its teacher plans in many.",
    ),
    "evaluate": Verb(
        "evaluate",
        "evaluate",
        "Try a policy in closed loop on consecutive seeds and print success, reward and latency with their intervals.",
    ),
    "export": Verb(
        "interop",
        "export_policy",
        "Write a policy for elsewhere: as one program, sampling included, that runs without poise, or for LeRobot.",
    ),
    "import": Verb(
        "interop",
        "import_policy",
        "Read a policy of LeRobot, diffusion_policy or robomimic, whose plans stay the same, and write it as a "
        "checkpoint.",
    ),
    "inspect": Verb(
        "inspect",
        "inspect",
        "Print the spec of a policy, its inputs and outputs with their ranges, its size, and the notes of its "
        "training.",
    ),
    "push": Verb("push", "push", "Share a policy on the hub, with a model card; `hf auth login` signs in."),
    "replan": Verb(
        "replan",
        "replan_run",
        "Plan again from what `poise serve --record` kept, and say how far the plans are from those that were sent.",
    ),
    "serve": Verb(
        "serve",
        "serve",
        "Serve a policy to many robots at once, over WebSockets in openpi's protocol, until SIGTERM or Ctrl-C.",
    ),
    "sweep": Verb(
        "sweep",
        "sweep",
        "Train every combination of some fields of a recipe, try each policy in closed loop, and compare them.",
    ),
    "train": Verb(
        "train",
        "train_recipe",
        "Learn a policy from demonstrations; poise train RECIPE --help lists the options of a recipe.",
    ),
}


def main() -> None:
    """Run `poise VERB ...`; what is wrong with the input ends in one line on stderr and exit status 2."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    try:
        _run(verb, arguments)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"poise: {error}", file=sys.stderr)
        sys.exit(2)


def _run(name: str, arguments: list[str]) -> None:
    if name not in VERBS:
        from poise.cli.fields import nearest

        raise ValueError(
            f"got the verb {name!r}, expected one of {', '.join(VERBS)}: did you mean poise {nearest(name, VERBS)}?"
        )
    verb = VERBS[name]
    function = getattr(importlib.import_module(f"poise.cli.{verb.module}"), verb.function)
    if name == "train":  # whose options depend on the recipe
        function(arguments)
    else:
        import tyro

        tyro.cli(function, prog=f"poise {name}", args=arguments)


def _overview() -> str:
    lines = "\n".join(f"  {name:<14}{verb.about}" for name, verb in VERBS.items())
    return f"""usage: poise VERB ...

From noise to poise: diffusion policies for robots, from demonstrations to closed loop.

{lines}

poise VERB --help lists the options of a verb."""


__all__ = ["VERBS", "Verb", "main"]
