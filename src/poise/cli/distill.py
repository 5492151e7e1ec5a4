"""`poise distill CHECKPOINT`: a student that plans in one evaluation what the checkpoint plans in many."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from poise.cli.machine import machine
from poise.cli.running import Hardware
from poise.data import Windows
from poise.plain import to_plain
from poise.policies import DiffusionPolicy, Safety, load
from poise.policies.saving import FILE
from poise.recipe import load_recipe
from poise.training import Learner, TrainingSpec, train
from poise.training.distillation import Distillation, gap, student_of

_BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long and how the student learns; the rest, such as the batch, is as in the recipe.

    Attributes:
        minutes: Wall-clock limit.
        steps: Gradient steps at most.
        learning_rate: Peak of the rate.
    """

    minutes: float = 15.0
    steps: int = 100_000
    learning_rate: float = 5e-4

    def of(self, training: TrainingSpec) -> TrainingSpec:
        """The training of a student; padded actions count, for the teacher plans them too."""
        changes = {"warmup": min(training.warmup, 100), "mask_padding": False, **dataclasses.asdict(self)}
        return dataclasses.replace(training, **changes)


def distill(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    recipe: Path,
    out: Path,
    data: Path | None = None,
    evaluations: int = 1,
    effort: Annotated[Effort, tyro.conf.arg(name="")] = Effort(),  # noqa: B008 (frozen)
    hardware: Annotated[Hardware, tyro.conf.arg(name="")] = Hardware(),  # noqa: B008 (frozen)
) -> None:
    """Distil a policy: a student learns to plan in one to three network evaluations what its teacher plans in many.

        poise distill out/pusht --recipe recipes/pusht.py --data pusht_cchi_v7_replay.zarr --out out/pusht-fast
        poise evaluate out/pusht-fast --recipe recipes/pusht.py

    The teacher plans from noise for the observations of the demonstrations, with the sampler, evaluations, bound and
    temperature of its checkpoint, and the student learns where each plan ends. A student is a policy like any other,
    but keep its sampler and temperature, which are what it has learned. More evaluations may refine its plans: poise
    evaluate --evaluations 2.

    What is printed besides is how far plans are from the teacher's, of the same noise on held-out observations, in
    normalised units: a student has to come nearer than the teacher itself with one evaluation.

    Args:
        checkpoint: The teacher, a file or directory of `poise train`; its sampler must be deterministic.
        recipe: Recipe file that says how demonstrations are read; it is run as a program.
        out: Folder of the student.
        data: Demonstrations, in the format that the recipe reads.
        evaluations: Network evaluations of the student's plans, 1 to 3.
        effort: How long and how the student learns.
        hardware: What trains it.

    Raises:
        ValueError: A teacher that does not denoise, or samples with noise, no evaluation, or a folder that holds a
            policy already.
    """
    if evaluations < 1:
        raise ValueError(f"distill got evaluations={evaluations}, expected at least 1")
    if (out / FILE).exists():
        raise ValueError(f"{out} holds a policy already, expected a new folder: name another --out")
    teacher = _teacher(checkpoint, hardware)
    found = load_recipe(recipe)
    windows = dataclasses.replace(found, policy=teacher.spec).parts(data, hardware.device)
    training = effort.of(found.training)
    student = _taught(student_of(teacher, evaluations), teacher, windows[0], training)
    print(_compared(student, teacher, windows[1]))
    described = {"teacher": checkpoint, "recipe": recipe, "data": data, "machine": machine()}
    notes = {**{name: str(value) for name, value in described.items()}, "training": to_plain(training)}
    notes |= Safety.fit(windows[0].actions, windows[0].starts).noted()
    print(f"wrote {student.save(out, notes)}\nnext: poise evaluate {out} --recipe {recipe}")


def _teacher(checkpoint: Path, hardware: Hardware) -> DiffusionPolicy:
    """The policy of a checkpoint that has a path, on its device."""
    teacher = hardware.take(load(checkpoint))
    if not isinstance(teacher, DiffusionPolicy):
        raise ValueError(f"{checkpoint} is a {type(teacher).__name__}, expected a DiffusionPolicy, which has a path")
    return teacher


def _taught(
    student: DiffusionPolicy, teacher: DiffusionPolicy, windows: Windows, training: TrainingSpec
) -> DiffusionPolicy:
    """The student with its averaged weights."""
    torch.manual_seed(training.seed)
    learner = Learner(student, training)
    with tqdm(total=100, bar_format=_BAR, mininterval=0.5) as bar:
        for now in train(learner, windows, loss=Distillation(student, teacher)):
            bar.update(100 * now.fraction - bar.n)
            bar.set_postfix_str(f"step {now.step}, loss {now.loss:.4f}, {now.samples / now.seconds:,.0f} samples/s")
    student.load_state_dict(learner.average.policy.state_dict())
    return student.eval()


def _compared(student: DiffusionPolicy, teacher: DiffusionPolicy, windows: Windows) -> str:
    far = [gap(policy.using(evaluations=1), teacher, windows) for policy in (student, teacher)]
    return (
        f"distance of plans to those of the teacher with {teacher.spec.evaluations} evaluations: {far[0]:.4f} of the "
        f"student with 1, {far[1]:.4f} of the teacher with 1"
    )


__all__ = ["Effort", "distill"]
