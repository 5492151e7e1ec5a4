import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from poise.cli.distill import Effort, distill
from poise.data import Episodes, Windows
from poise.denoisers import Gaussian, Mixture
from poise.draws import Draws
from poise.nn import MLP
from poise.policies import (
    Consistency,
    DiffusionPolicy,
    Independent,
    PolicySpec,
    Regression,
    Unit,
    load,
    load_checkpoint,
)
from poise.predictions import Epsilon, Velocity
from poise.sampling import DDIM, DDPM, UniformTime, gaussian, per_sample, sample
from poise.schedules import Rectified, VPCosine
from poise.training import Checkpoints, Learner, TrainingSpec, train
from poise.training.distillation import Distillation, gap, student_of

SPEC = PolicySpec(
    {"side": (1,)}, 1, history=1, horizon=2, execute=1, network=MLP(width=48, depth=2, condition=8), bound=None
)
FAST = TrainingSpec(steps=300, batch=128, warmup=20, learning_rate=3e-3, ema_maximum=0.98)


@pytest.fixture(scope="module")
def windows() -> Windows:
    """Observations of one number; the actions do not matter to a student."""
    side = np.random.default_rng(0).uniform(-1, 1, (1000, 1)).astype(np.float32)
    return Windows(Episodes({"side": side, "action": side}, np.arange(1, 1001)), ("side",), 1, 2, 1)


class Known(torch.nn.Module):
    """In the place of `Diffusion`: an exact denoiser of plans, whatever is observed."""

    def __init__(self, denoise):
        super().__init__()
        self.denoise = denoise

    def given(self, tokens):
        return lambda x, t: self.denoise(x.flatten(1), t).view_as(x)


def pair(windows, denoise, **changes) -> tuple[DiffusionPolicy, DiffusionPolicy]:
    """An untrained student and a teacher that knows the answer."""
    torch.manual_seed(0)
    teacher = DiffusionPolicy(dataclasses.replace(SPEC, **{"schedule": denoise.schedule, **changes}))
    teacher.fit(windows)
    student = student_of(teacher)
    teacher.diffusion = Known(denoise)
    return student, teacher


def distilled(student, teacher, windows, training=FAST) -> DiffusionPolicy:
    learner = Learner(student, training)
    for _ in train(learner, windows, loss=Distillation(learner.policy, teacher)):
        pass
    return learner.average.policy


def ends(policy, observation, seed=1):
    with torch.no_grad():
        *_, last = policy.path(observation, gaussian(torch.Generator().manual_seed(seed)))
    return last.x


@pytest.mark.parametrize("schedule", [VPCosine(), Rectified()], ids=lambda s: type(s).__name__)
def test_one_evaluation_is_the_probability_flow_of_a_gaussian(windows, schedule):
    """Within 0.02 of plans of deviations 0.4 and 0.15, at the teacher's temperature; its own one step is the mean."""
    mean, deviation = torch.tensor([0.5, -1.0]), torch.tensor([0.8, 0.3])
    known = Gaussian(schedule, mean, deviation.square())
    student, teacher = pair(windows, known, evaluations=20, temperature=0.5)
    student = distilled(student, teacher, windows)
    observation = {"side": torch.linspace(-1, 1, 500)[:, None, None]}
    x = ends(student, observation)
    begin = torch.randn(500, 2, 1, generator=torch.Generator().manual_seed(1)) * 0.5
    level = schedule.at(1.0)
    exact = known.flow(begin.flatten(1) * math.hypot(level.alpha, level.sigma), 1.0, 0.0)
    error = (x.flatten(1) - exact).square().mean(0).sqrt()
    assert (error < 0.02).all()
    for evaluations in (2, 3):  # with fresh noise on the way
        again = ends(student.using(evaluations=evaluations), observation).flatten(1)
        torch.testing.assert_close(again.mean(0), exact.mean(0), atol=0.06, rtol=0)
        torch.testing.assert_close(again.std(0), exact.std(0), atol=0.03, rtol=0)
    one = (ends(teacher.using(DDIM(), evaluations=1), observation).flatten(1) - exact).square().mean(0).sqrt()
    assert (one > 5 * error).all()


def test_one_evaluation_keeps_both_modes_in_their_proportions(windows):
    """As many plans of each mode as the teacher's of the same noise, near the modes; the teacher's one step is not."""
    means = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    known = Mixture(VPCosine(), means, 0.1, torch.tensor([0.3, 0.7]))
    student, teacher = pair(windows, known)
    student, observation = distilled(student, teacher, windows), {"side": torch.zeros(2000, 1, 1)}
    plans, theirs = ends(student, observation).flatten(1), ends(teacher, observation).flatten(1)
    assert (plans[:, 0] > 0).float().mean() == pytest.approx(0.3, abs=0.03)
    assert ((plans[:, 0] > 0) == (theirs[:, 0] > 0)).float().mean() > 0.98
    near = lambda x: ((x.abs() - 1).abs().amax(1) < 0.4).float().mean()  # noqa: E731
    assert near(plans) > 0.95
    assert near(ends(teacher.using(evaluations=1), observation).flatten(1)) < 0.05


@pytest.mark.parametrize("evaluations", [1, 2, 3, 8])
def test_consistency_sampling_with_an_exact_function_has_the_exact_law(evaluations):
    """Every step, whatever their number; DDIM, which keeps the noise that it came with, has not."""
    schedule = VPCosine()
    known = Gaussian(schedule, torch.tensor([0.4]).double(), torch.tensor([0.3]).double())
    level, noise = schedule.at(1.0), gaussian(torch.Generator().manual_seed(0))
    x = level.alpha * 0.4 + math.sqrt(level.alpha**2 * 0.3 + level.sigma**2) * noise(
        torch.empty(40_000, 1).double(), 1, 1
    )
    jump, times = (
        lambda x, t: known.flow(x, t, 0.0) / schedule.at(0.0).alpha,
        UniformTime().times(schedule, evaluations),
    )  # noqa: E731
    last = sample(jump, schedule, Consistency(), times, x, noise)
    assert last.evaluations == evaluations
    assert last.x.mean() == pytest.approx(0.4, abs=0.02)
    assert last.x.var() == pytest.approx(0.3, rel=0.04)
    if evaluations > 2:
        assert sample(jump, schedule, DDIM(), times, x).x.var() != pytest.approx(0.3, rel=0.1)


def test_consistency_sampling_draws_no_noise_at_the_end_and_knows_no_batch():
    schedule, asked = VPCosine(), []
    known = Gaussian(schedule, torch.zeros(1), torch.ones(1) / 3)
    spy = lambda x, t, s: asked.append((t, s)) or torch.zeros_like(x)  # noqa: E731
    sample(known, schedule, Consistency(), [1.0, 0.6, 0.2, 0.0], torch.ones(2, 1), spy)
    assert asked == [(1.0, 0.6), (0.6, 0.2)]
    x, seeds = torch.linspace(-1, 1, 4)[:, None], range(4)
    together = sample(known, schedule, Consistency(), [1.0, 0.5, 0.0], x, per_sample(seeds)).x
    alone = [sample(known, schedule, Consistency(), [1.0, 0.5, 0.0], x[i : i + 1], per_sample([i])).x for i in seeds]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_student_is_a_policy_with_the_weights_of_its_teacher(windows, tmp_path):
    teacher = DiffusionPolicy(dataclasses.replace(SPEC, temperature=0.5, bound=2.0))
    teacher.fit(windows)
    student = student_of(teacher, evaluations=2)
    assert all(
        torch.equal(a, b) for a, b in zip(student.state_dict().values(), teacher.state_dict().values(), strict=True)
    )
    changed = {"sampler": Consistency(), "evaluations": 2}
    assert student.spec == dataclasses.replace(teacher.spec, **changed)
    again, observation = load(student.save(tmp_path)), {"side": torch.zeros(3, 1, 1)}
    seeded = lambda policy: policy.plan(observation, gaussian(torch.Generator().manual_seed(0)))  # noqa: E731
    assert torch.equal(seeded(again), seeded(student.eval()))


def test_a_student_of_a_teacher_of_noise_predicts_velocity(windows):
    """sigma / alpha is 1000 at t = 1: no network gives epsilon so exactly that one step ends right."""
    teacher = DiffusionPolicy(dataclasses.replace(SPEC, prediction=Epsilon(), schedule=VPCosine()))
    assert student_of(teacher).spec.prediction == Velocity()


def test_a_teacher_that_samples_with_noise_is_refused(windows):
    student, teacher = pair(windows, Gaussian(VPCosine(), torch.zeros(2), torch.ones(2)))
    loss = Distillation(student, teacher.using(DDPM(), evaluations=3))
    with pytest.raises(ValueError, match=r"draws noise on the way from t = 1 to 0.6667, expected a deterministic one"):
        loss(windows[torch.arange(4)], Draws())


def test_parts_of_a_batch_have_the_errors_of_the_whole(windows):
    student, teacher = pair(windows, Gaussian(VPCosine(), torch.zeros(2), torch.ones(2)))
    loss, seeded = Distillation(student, teacher), lambda: torch.Generator().manual_seed(0)
    whole = loss(windows[torch.arange(10)], Draws(seeded()))
    parts = [
        loss(windows[torch.arange(3)], Draws(seeded(), 0, 10)),
        loss(windows[torch.arange(3, 10)], Draws(seeded(), 3, 10)),
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def optional(windows) -> tuple[DiffusionPolicy, DiffusionPolicy, Windows]:
    """A student and a teacher that see a second feature half of the time."""
    spec = dataclasses.replace(SPEC, observations={"side": (1,), "action": (1,)}, optional={"action": 0.5})
    rows = {"side": np.zeros((9, 1), np.float32), "action": np.ones((9, 1), np.float32)}
    both = Windows(Episodes(rows, np.arange(1, 10)), ("side", "action"), 1, 2, 1)
    teacher = DiffusionPolicy(spec)
    teacher.fit(both)
    return student_of(teacher), teacher, both


def test_what_is_absent_is_absent_in_all_parts_of_a_batch(windows):
    student, teacher, both = optional(windows)
    loss = Distillation(student, teacher)
    for seed in range(20):
        whole, *parts = (
            sorted(loss._seen(both[torch.arange(start, end)], Draws(torch.Generator().manual_seed(seed), start, 9)))
            for start, end in ((0, 9), (0, 2), (2, 3), (3, 9))
        )
        assert parts == [whole] * 3


def test_the_path_of_a_teacher_is_never_rounded(windows, monkeypatch):
    """Under autocast, as training with bfloat16 computes, its ends are those of float32; the student is rounded."""
    torch.manual_seed(0)
    teacher = DiffusionPolicy(SPEC)
    teacher.fit(windows)
    student, ends, given, path = student_of(teacher), [], [], teacher.path
    monkeypatch.setattr(teacher, "path", lambda *a: (ends.append(state.x) or state for state in path(*a)))
    forward = student.diffusion.forward
    monkeypatch.setattr(student.diffusion, "forward", lambda *a: given.append(forward(*a)) or given[-1])
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            Distillation(student, teacher)(windows[torch.arange(16)], Draws(torch.Generator().manual_seed(0)))
    half = len(ends) // 2
    assert all(torch.equal(plain, rounded) for plain, rounded in zip(ends[:half], ends[half:], strict=True))
    assert not torch.equal(*given)


def test_features_that_may_be_absent_are_absent_for_both(windows, monkeypatch):
    student, teacher, both = optional(windows)
    seen, hidden = [], 0
    loss, generator = Distillation(student, teacher), torch.Generator().manual_seed(0)
    for policy in (student, teacher):
        tokens = policy.tokens
        monkeypatch.setattr(policy, "tokens", lambda o, tokens=tokens: seen.append(sorted(o)) or tokens(o))
    for _ in range(40):
        seen.clear()
        loss(both[torch.arange(4)], Draws(generator))
        assert len(seen) == 2
        assert seen[0] == seen[1]
        hidden += seen[0] == ["side"]
    assert 10 < hidden < 30


def test_the_gap_to_the_teacher(windows):
    student, teacher = pair(windows, Gaussian(VPCosine(), torch.zeros(2), torch.ones(2)))
    assert gap(teacher, teacher, windows) == 0
    # One step ends at the mean, zero, and ten near their noise, of unit deviation.
    assert gap(teacher.using(DDIM(), evaluations=1), teacher, windows) == pytest.approx(1, abs=0.08)


def test_checkpoints_of_before_weightings_and_couplings_load(windows, tmp_path):
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    file = policy.save(tmp_path)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    plain = json.loads(header["policy"])
    for name in ("weighting", "coupling"):
        del plain["spec"][name]
    kept = {name: value for name, value in header.items() if name != "seal"}
    save_file(load_file(file), file, {**kept, "policy": json.dumps(plain)})
    spec = load(tmp_path).spec
    assert (spec.weighting, spec.coupling) == (Unit(), Independent())
    assert spec == policy.spec


RECIPE = """
import numpy as np
from poise import Episodes, Recipe, Task, TrainingSpec
from poise import MLP, PolicySpec

def read(path):
    side = np.random.default_rng(0).uniform(-1, 1, (300, 1)).astype(np.float32)
    return Episodes({"side": side, "action": np.sign(side)}, np.arange(1, 301))

spec = PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=MLP(width=16, depth=1, condition=8))
recipe = Recipe(spec, TrainingSpec(batch=32), Task("none"), read, validation=0.1)
"""


def test_the_verb_distils_a_checkpoint(windows, tmp_path, capsys):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    teacher = DiffusionPolicy(dataclasses.replace(SPEC, network=MLP(width=16, depth=1, condition=8)))
    teacher.fit(windows)
    file, out = teacher.save(tmp_path / "teacher"), tmp_path / "student"
    distill(file, recipe, out, effort=Effort(steps=20))
    student = load(out)
    assert student.spec.sampler == Consistency()
    assert student.spec.evaluations == 1
    assert any(not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    shown = capsys.readouterr().out
    assert "of the student with 1" in shown
    assert f"next: poise evaluate {out} --recipe {recipe}" in shown
    with pytest.raises(ValueError, match="distill got evaluations=0, expected 1 to 3"):
        distill(file, recipe, tmp_path / "none", evaluations=0)
    with pytest.raises(ValueError, match="distill got evaluations=4, expected 1 to 3"):
        distill(file, recipe, tmp_path / "none", evaluations=4)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="holds a policy already, expected a new folder: name another --out"):
        distill(file, recipe, out)
    regression = Regression(SPEC)
    regression.fit(windows)
    with pytest.raises(ValueError, match="is a Regression, expected a DiffusionPolicy"):
        distill(regression.save(tmp_path / "regression"), recipe, tmp_path / "other")


@pytest.mark.parametrize("signalled", [True, False])
def test_a_distillation_survives(windows, tmp_path, monkeypatch, capsys, signalled):
    """Stopped by SIGTERM, or dead after a checkpoint, it goes on to the bits of one that was not; one at a time."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.replace("batch=32", "batch=32, save_every=20"))
    teacher = DiffusionPolicy(dataclasses.replace(SPEC, network=MLP(width=16, depth=1, condition=8)))
    teacher.fit(windows)
    file, out, effort, asked = teacher.save(tmp_path / "teacher"), tmp_path / "student", Effort(steps=60), []
    distill(file, recipe, tmp_path / "whole", effort=effort)
    with Checkpoints(out).locked(), pytest.raises(BlockingIOError, match="another process trains in"):
        distill(file, recipe, out, effort=effort)

    def stopped(self: Distillation, batch: object, draws: Draws) -> torch.Tensor:
        asked.append(None)
        if len(asked) == 30:
            if not signalled:
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch, draws)

    plain = Distillation.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "__call__", stopped)
        with pytest.raises(SystemExit if signalled else RuntimeError):
            distill(file, recipe, out, effort=effort)
    said = capsys.readouterr().err
    assert ("stopped at step 30: the same command with --resume goes on from there" in said) == signalled
    assert (out / "policy.safetensors").exists() == signalled
    with pytest.raises(ValueError, match="holds a policy already, .* go on with what was stopped by --resume"):
        distill(file, recipe, out, effort=effort)
    with pytest.raises(ValueError, match="got the evaluations 2, but .* was begun with 1, expected the same"):
        distill(file, recipe, out, evaluations=2, effort=effort, resume=True)
    distill(file, recipe, out, effort=effort, resume=True)
    whole, found = load(tmp_path / "whole"), load(out)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters(), strict=True))
    (line,) = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 50
    assert line["loss"] > 0
    assert load_checkpoint(out).notes["teacher"] == str(file.resolve())
