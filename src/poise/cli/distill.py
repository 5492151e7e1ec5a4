"""`poise distill CHECKPOINT`: a student that plans in one evaluation what the checkpoint plans in many."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from poise.cli.fitting import Job, fit
from poise.cli.machine import machine
from poise.cli.running import Hardware
from poise.data import Windows
from poise.plain import to_plain
from poise.policies import DiffusionPolicy, load
from poise.policies.saving import FILE
from poise.recipe import load_recipe
from poise.training import Checkpoints, TrainingSpec
from poise.training.distillation import Distillation, gap, student_of

_MOST = 3  # evaluations


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
    resume: bool = False,
) -> None:
    """Distil a policy: a student learns to plan in one to three network evaluations what its teacher plans in many.

        poise distill out/pusht --recipe recipes/pusht.py --data pusht_cchi_v7_replay.zarr --out out/pusht-fast
        poise evaluate out/pusht-fast --recipe recipes/pusht.py

    The teacher plans from noise for the observations of the demonstrations, with the sampler, evaluations, bound and
    temperature of its checkpoint, and the student learns where each plan ends. A student is a policy like any other,
    but keep its sampler and temperature, which are what it has learned. More evaluations may refine its plans: poise
    evaluate --evaluations 2.

    It is trained as by poise train: checkpoints, metrics.jsonl, and the same command with --resume after whatever
    stopped it.

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
        resume: Go on from the newest checkpoint in --out, with options as they were.

    Raises:
        BlockingIOError: Another process trains in the same folder.
        ValueError: A teacher that does not denoise, or samples with noise, too few or many evaluations, a folder that
            holds a policy already, or a resume with other options.
        SystemExit: SIGTERM, with the status 143; a checkpoint is saved before.
    """
    _check(evaluations, out, resume)
    teacher, found = _loaded(checkpoint, hardware), load_recipe(recipe)
    windows = dataclasses.replace(found, policy=teacher.spec).parts(data, hardware.device)
    described = {"teacher": checkpoint.resolve(), "recipe": recipe, "data": data, "machine": machine()}
    notes = {**{name: str(value) for name, value in described.items()}, "evaluations": evaluations}
    file = fit(_job(teacher, effort.of(found.training), out, notes), (windows[0], None), resume)
    print(_compared(_loaded(file, hardware), teacher, windows[1]))
    print(f"wrote {file}\nnext: poise evaluate {out} --recipe {recipe}")


def _check(evaluations: int, out: Path, resume: bool) -> None:
    """Refuse what cannot be trained, or would be written over."""
    if not 1 <= evaluations <= _MOST:
        raise ValueError(f"distill got evaluations={evaluations}, expected 1 to {_MOST}")
    if not resume and ((out / FILE).exists() or any(Checkpoints(out).folder.glob("step-*"))):
        raise ValueError(
            f"{out} holds a policy already, expected a new folder: name another --out, or go on with what was stopped "
            "by --resume"
        )


def _job(teacher: DiffusionPolicy, training: TrainingSpec, out: Path, notes: dict[str, Any]) -> Job:
    """The training of a student."""
    student = student_of(teacher, notes["evaluations"])
    return Job(
        kind=DiffusionPolicy,
        spec=student.spec,
        training=training,
        out=out,
        notes={**notes, "training": to_plain(training)},
        policy=student,
        loss=Distillation(student, teacher),
        again="the same command with --resume",
    )


def _loaded(checkpoint: Path, hardware: Hardware) -> DiffusionPolicy:
    """The policy of a checkpoint that has a path, on its device."""
    policy = hardware.take(load(checkpoint))
    if not isinstance(policy, DiffusionPolicy):
        raise ValueError(f"{checkpoint} is a {type(policy).__name__}, expected a DiffusionPolicy, which has a path")
    return policy


def _compared(student: DiffusionPolicy, teacher: DiffusionPolicy, windows: Windows) -> str:
    far = [gap(policy.using(evaluations=1), teacher, windows) for policy in (student, teacher)]
    return (
        f"distance of plans to those of the teacher with {teacher.spec.evaluations} evaluations: {far[0]:.4f} of the "
        f"student with 1, {far[1]:.4f} of the teacher with 1"
    )


__all__ = ["Effort", "distill"]
