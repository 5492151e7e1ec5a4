"""Model cards: what a policy sees, does and was measured at, written from its checkpoint and its evaluation."""

from collections.abc import Mapping
from typing import Any

from poise.plain import to_plain
from poise.policies import Policy

_SHOWN = ("encoder", "network", "schedule", "prediction", "sampler", "evaluations", "temperature", "space")


def model_card(policy: Policy, notes: Mapping[str, Any], results: Mapping[str, Any] | None, name: str) -> str:
    """The text of a card in Markdown, without its header.

    Args:
        policy: The policy.
        notes: Of its checkpoint: recipe, data, training, machine.
        results: The JSON of `poise evaluate`, or None.
        name: Of the model, `owner/name`.
    """
    spec = policy.spec
    seen = [f"| `{key}` | {_shape(shape)} |" for key, shape in spec.observations.items()]
    parts = [f"| {part} | `{getattr(spec, part)}` |" for part in _SHOWN]
    weights = sum(parameter.numel() for parameter in policy.parameters())
    sections = [
        f"# {name}",
        f"A {type(policy).__name__} of [poise](https://pypi.org/project/poise) with {weights:,} parameters: from "
        f"{spec.history} observation{'s' * (spec.history > 1)} it plans {spec.horizon} actions of {spec.action} "
        f"numbers and executes {spec.execute} of them before it plans again.",
        "```python\n"
        "import poise\n\n"
        f'policy = poise.from_pretrained("{name}")\n'
        "robot = poise.RecedingHorizon(policy)\n"
        "robot.reset([0])\n"
        "action = robot.act(observation)  # every control step; a row of each feature for one robot\n"
        "```",
        "## What it sees\n\n" + "\n".join(["| feature | shape |", "|---|---|", *seen]),
        "## How it is made\n\n" + "\n".join(["| part | value |", "|---|---|", *parts]),
        "## Training\n\n" + _training(notes),
        "## Evaluation\n\n" + (_evaluation(results) if results else "None is recorded here."),
        "## Limits\n\nA policy knows what its demonstrations show. Before it moves a robot, try it in closed loop from "
        "the starts that it will meet, and keep a safety filter between it and the motors.",
    ]
    return "\n\n".join(sections) + "\n"


def _shape(shape: tuple[int, ...]) -> str:
    size = " x ".join(map(str, shape))
    return f"{size} (image, uint8)" if len(shape) == 3 else size


def _training(notes: Mapping[str, Any]) -> str:
    progress, data = notes.get("progress") or {}, notes.get("demonstrations") or {}
    rows = {
        "recipe": notes.get("recipe"),
        "data": notes.get("data"),
        "demonstrations": data.get("training"),
        "windows": data.get("windows"),
        "steps": progress.get("step"),
        "minutes": None if "seconds" not in progress else f"{progress['seconds'] / 60:.1f}",
        "machine": notes.get("machine"),
    }
    known = [f"| {key} | {to_plain(value)} |" for key, value in rows.items() if value is not None]
    return "\n".join(["| what | value |", "|---|---|", *known]) if known else "Nothing is recorded here."


def _evaluation(results: Mapping[str, Any]) -> str:
    lines = [
        "| policy | episodes | success (95 % interval) | mean maximum reward | plan, median |",
        "|---|---|---|---|---|",
    ]
    for name, f in results["policies"].items():
        lines.append(
            f"| {name} | {f['episodes']} | {f['success']:.1%} ({f['success_low']:.1%} to {f['success_high']:.1%}) "
            f"| {f['reward_max_mean']:.3f} | {f['plan_ms_median']:.1f} ms |"
        )
    return "\n".join(lines) + f"\n\nMachine: {results.get('machine', 'unknown')}."


__all__ = ["model_card"]
