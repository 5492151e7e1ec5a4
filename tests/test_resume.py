"""Runs that survive: what a resume continues to, what is kept, and what happens when things go wrong."""

import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from poise import load
from poise.cli import fitting, main
from poise.data import Episodes, Windows
from poise.nn import Transformer
from poise.policies import DiffusionPolicy, PolicySpec, load_checkpoint
from poise.training import Checkpoints, Learner, TrainingSpec, Validation, checkpoints, train
from poise.training.trackers import json_lines
from poise.training.trackers.json_lines import JsonLines

SPEC = PolicySpec(
    {"side": (1,)}, 1, history=1, horizon=2, execute=1, network=Transformer(width=16, heads=2, depth=1, dropout=0.2)
)
TRAINING = TrainingSpec(steps=24, batch=32, warmup=5, save_every=8)


@pytest.fixture
def windows() -> Windows:
    rows = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    return Windows(Episodes({"side": rows, "action": rows}, np.array([100, 200])), ("side",), 1, 2, 1)


def learner(windows: Windows, training: TrainingSpec = TRAINING) -> Learner:
    torch.manual_seed(0)
    policy = DiffusionPolicy(SPEC)
    policy.fit(windows)
    return Learner(policy, training)


def run(found: Learner, windows: Windows, kept: Checkpoints, until: int) -> None:
    for now in train(found, windows):
        if now.step % TRAINING.save_every == 0:
            kept.save(found, {"step": now.step}, score=-abs(now.step - 8.0))
        if now.step == until:
            return


def state(found: Learner) -> dict[str, torch.Tensor]:
    return {**found.tensors(), **{f"average.{k}": v for k, v in found.average.policy.state_dict().items()}}


def test_a_resumed_run_ends_with_the_same_bits(windows, tmp_path):
    """Dropout draws from the global generator, so that its state counts too; steps after the checkpoint are lost."""
    whole = learner(windows)
    run(whole, windows, Checkpoints(tmp_path / "whole"), 24)
    run(learner(windows), windows, Checkpoints(tmp_path / "cut"), 19)
    torch.manual_seed(99)
    again = Learner(learner(windows).policy, TRAINING)
    resumed = Checkpoints(tmp_path / "cut").resume(again)
    assert resumed is not None
    assert resumed.step == again.step == 16
    assert resumed.notes == {"step": 16}
    run(again, windows, Checkpoints(tmp_path / "cut"), 24)
    assert again.average.updates == 24
    expected = state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in state(again).items())
    assert set(state(again)) == set(expected)


def test_the_last_and_the_best_are_kept(windows, tmp_path):
    kept = Checkpoints(tmp_path, keep_last=1, keep_best=1)
    run(learner(windows), windows, kept, 24)
    assert sorted(p.name for p in kept.folder.iterdir()) == ["latest", "step-00000008", "step-00000024"]
    assert (kept.folder / "latest").readlink() == Path("step-00000024")
    again = Checkpoints(tmp_path, keep_last=1, keep_best=1)
    again.resume(learner(windows))
    assert again.best == ((0.0, 8),)
    assert load(kept.folder / "step-00000008").spec == load(kept.folder / "latest").spec == SPEC


@pytest.mark.parametrize(
    "broken", ["policy.safetensors", "parameters.safetensors", "exp_avg.safetensors", "manifest.json"]
)
def test_a_checkpoint_with_a_flipped_bit_is_passed_over(windows, tmp_path, capsys, broken):
    kept = Checkpoints(tmp_path)
    run(learner(windows), windows, kept, 24)
    file = kept.folder / "step-00000024" / broken
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = learner(windows)
    resumed = kept.resume(found)
    assert resumed is not None
    assert found.step == 16
    assert "passing over" in capsys.readouterr().err
    run(found, windows, kept, 24)
    assert kept.resume(learner(windows)).step == 24


def broken(kept: Checkpoints, step: int) -> None:
    (kept.folder / f"step-{step:08d}" / "manifest.json").write_text("{}")


def test_after_a_checkpoint_that_is_not_whole_latest_names_the_one_that_is(windows, tmp_path):
    kept = Checkpoints(tmp_path, keep_last=3)
    for _ in range(2):
        found = learner(windows)
        kept.resume(found)
        run(found, windows, kept, 24)
        broken(kept, 24)
        assert kept.resume(learner(windows)).step == 16
        assert (kept.folder / "latest").readlink() == Path("step-00000016")
        assert len(list(kept.folder.glob("broken-*"))) == 1
    for step in (8, 16):
        broken(kept, step)
    assert kept.resume(learner(windows)) is None
    assert not (kept.folder / "latest").is_symlink()
    assert len(list(kept.folder.glob("broken-*"))) == 3  # without a whole one nothing is deleted


def test_a_score_is_kept_where_it_is_among_the_best():
    kept = Checkpoints(Path(), keep_best=2, best=((0.5, 8), (0.3, 16)))
    assert [kept.would_keep(score) for score in (0.2, 0.3, 0.4, 0.6)] == [False, False, True, True]
    assert Checkpoints(Path(), keep_best=2, best=((0.5, 8),)).would_keep(0.1)
    assert not Checkpoints(Path(), keep_best=0).would_keep(1.0)


def test_a_missing_pointer_costs_nothing(windows, tmp_path):
    kept = Checkpoints(tmp_path)
    run(learner(windows), windows, kept, 24)
    (kept.folder / "latest").unlink()
    assert kept.resume(learner(windows)).step == 24
    assert Checkpoints(tmp_path / "none").resume(learner(windows)) is None


def test_safetensors_tells_of_a_full_disk_like_any_file(tmp_path):
    """With a limit on the size of files, since to fill a disk takes rights that tests have not."""
    code = f"""
import resource, signal, torch
from pathlib import Path
from poise.policies.saving import write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_tensors({{"a": torch.zeros(1000)}}, Path({str(tmp_path / "a.safetensors")!r}))
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.EFBIG


@pytest.mark.parametrize("at", ["write_tensors", "_synced"])
def test_a_full_disk_leaves_the_last_checkpoint(windows, tmp_path, monkeypatch, at):
    kept, found = Checkpoints(tmp_path), learner(windows)
    run(found, windows, kept, 8)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, at, full)
    with pytest.raises(OSError, match=r"No space left on device while saving step 16.*poise train --resume"):
        run(found, windows, kept, 24)
    monkeypatch.undo()
    assert sorted(p.name for p in kept.folder.iterdir()) == ["latest", "step-00000008"]
    assert kept.resume(learner(windows)).step == 8


def test_a_changed_number_in_the_manifest_is_noticed(windows, tmp_path, capsys):
    kept = Checkpoints(tmp_path)
    run(learner(windows), windows, kept, 16)
    file = kept.folder / "step-00000016" / "manifest.json"
    text = file.read_text()
    assert text.count('"step": 16') > 0
    file.write_text(text.replace('"step": 16', '"step": 17'))
    assert kept.resume(learner(windows)).step == 8
    assert "manifest.json differs from what was written" in capsys.readouterr().err


def test_what_is_not_finite_is_never_saved(windows, tmp_path):
    found = learner(windows)
    with torch.no_grad():
        next(iter(found.average.policy.parameters())).fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="is not finite at step 0, so that no checkpoint is written") as error:
        Checkpoints(tmp_path).save(found, {})
    assert "begin a new run with a lower learning rate" in str(error.value)
    assert "resume" not in str(error.value)  # which a run with another rate is refused
    assert not list(tmp_path.rglob("step-*"))


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        Checkpoints(tmp_path).locked(),
        pytest.raises(BlockingIOError, match=r"another process trains in .*, expected one at a time"),
        Checkpoints(tmp_path).locked(),
    ):
        pass


RECIPE = """
import numpy as np
from poise import MLP, Episodes, PolicySpec, Recipe, Task, TrainingSpec

def demonstrations(path):
    rows = np.random.default_rng(0).normal(size=(600, 1)).astype(np.float32)
    return Episodes({"side": rows, "action": rows}, np.arange(100, 601, 100))

recipe = Recipe(
    policy=PolicySpec({"side": (1,)}, 1, history=1, horizon=2, execute=1, network=MLP(width=16, depth=1, condition=8)),
    training=TrainingSpec(steps=400, batch=32, save_every=25, validate_every=25),
    task=Task("poise.envs:poise/Navigate-v0"),
    read=demonstrations,
    validation=0.2,
)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(RECIPE)
    return path


def poise(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["poise", *map(str, arguments)])
    main()


def bits(run: Path) -> dict[str, torch.Tensor]:
    return load(run).state_dict()


def test_a_killed_run_resumes_to_the_bits_of_an_uninterrupted_one(recipe, monkeypatch, tmp_path):
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "whole")
    cut, environment = tmp_path / "cut", {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "poise", "train", str(recipe), "--out", str(cut), "--threads", "1"]
    for kill in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(cut.glob("checkpoints/step-*"))) if cut.exists() else 0
        seen = {p.name for p in cut.glob("checkpoints/step-*")}
        while process.poll() is None and {p.name for p in cut.glob("checkpoints/step-*")} <= seen:
            time.sleep(0.005)
        process.send_signal(kill)
        assert process.wait(timeout=10) in (-signal.SIGKILL, 128 + signal.SIGTERM), before
        command = [sys.executable, "-m", "poise", "train", "--resume", str(cut)]
    poise(monkeypatch, "train", "--resume", cut)
    expected = bits(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in bits(cut).items())
    lines = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [line["step"] for line in whole]
    assert lines[-1]["validation"] == whole[-1]["validation"]


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        poise(monkeypatch, *arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_a_run_is_not_overwritten_unless_asked_to(recipe, monkeypatch, capsys, tmp_path):
    arguments = ("train", recipe, "--out", tmp_path / "run", "--training.steps", 40)
    poise(monkeypatch, *arguments)
    assert "holds a run already: go on with it by poise train --resume" in refused(monkeypatch, capsys, *arguments)
    poise(monkeypatch, *arguments, "--overwrite")


def test_a_resume_with_another_spec_lists_the_differences(recipe, monkeypatch, capsys, tmp_path):
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", "--training.steps", 40)
    recipe.write_text(RECIPE.replace("batch=32", "batch=64").replace("width=16", "width=32"))
    message = refused(monkeypatch, capsys, "train", "--resume", tmp_path / "run")
    assert "training.batch: 32 became 64" in message
    assert "policy.network.width: 16 became 32" in message
    assert "expected one folder" in refused(monkeypatch, capsys, "train", "--resume", tmp_path / "none")


def test_a_resume_takes_where_it_is_computed_and_names_what_else_it_got(recipe, monkeypatch, capsys, tmp_path):
    out, threads = tmp_path / "run", torch.get_num_threads()
    poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 40, "--threads", 1)
    rate = ("--training.learning-rate", "1e-4")
    message = refused(monkeypatch, capsys, "train", "--resume", out, "--device", "cpu", *rate)
    assert f"got '--training.learning-rate 1e-4' after --resume {out}, expected nothing but --device" in message
    assert "for other options begin a new one" in message
    with monkeypatch.context() as patch:
        asked = []
        patch.setattr(torch, "set_num_threads", asked.append)
        poise(patch, "train", "--resume", out, "--device", "cpu", "--threads", 2)
    assert asked == [2]
    assert "got --device nowhere" in refused(monkeypatch, capsys, "train", "--resume", out, "--device=nowhere")
    torch.set_num_threads(threads)


def test_a_resume_with_other_demonstrations_is_refused(recipe, monkeypatch, capsys, tmp_path):
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", "--training.steps", 40)
    recipe.write_text(RECIPE.replace("100, 601", "100, 501").replace("size=(600", "size=(500"))
    message = refused(monkeypatch, capsys, "train", "--resume", tmp_path / "run")
    assert "got the demonstrations {'training': 4, 'validation': 1, 'windows': 400}, but" in message
    assert "was begun with {'training': 5, 'validation': 1, 'windows': 500}, expected the same" in message


def test_a_resume_with_as_many_other_demonstrations_is_refused(recipe, monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 40)
    recipe.write_text(RECIPE.replace('"action": rows}', '"action": 2 * rows}'))
    message = refused(monkeypatch, capsys, "train", "--resume", out)
    assert f"{out} was begun with others, with other statistics of action, expected the same: restore the" in message
    recipe.write_text(RECIPE.replace("default_rng(0)", "default_rng(1)"))
    assert "with other statistics of side and action" in refused(monkeypatch, capsys, "train", "--resume", out)


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("validation=0.2", "validation=0.4", "validation: 0.2 became 0.4"),
        ("validation=0.2", "validation=0.2, episodes=5", "episodes: None became 5"),
        ("validation=0.2", "validation=0.2, padded=0", "padded: None became 0"),
    ],
)
def test_a_resume_with_another_choice_of_demonstrations_is_refused(
    recipe, monkeypatch, capsys, tmp_path, before, after, difference
):
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", "--training.steps", 40)
    recipe.write_text(RECIPE.replace(before, after))
    assert difference in refused(monkeypatch, capsys, "train", "--resume", tmp_path / "run")


def test_a_run_goes_on_from_another_folder(recipe, monkeypatch, tmp_path):
    """The paths of its command line are those that were meant where it was begun."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(600, 1)).astype(np.float32))
    recipe.write_text(
        RECIPE.replace("np.random.default_rng(0).normal(size=(600, 1)).astype(np.float32)", "np.load(path)")
    )
    monkeypatch.chdir(tmp_path)
    poise(monkeypatch, "train", "tiny.py", "--out", "run", "--data", "rows.npy", "--training.steps", 40)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    poise(monkeypatch, "train", "--resume", tmp_path / "run")
    begun = json.loads((tmp_path / "run/training.json").read_text())
    assert begun["specs"]["data"] == str(tmp_path / "rows.npy")


def test_a_run_that_died_before_its_first_step_is_begun_by_a_resume(recipe, monkeypatch, capsys, tmp_path):
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    out, options = tmp_path / "run", ("--training.steps", 40)
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "whole", *options)
    plain = fitting._run
    monkeypatch.setattr(fitting, "_run", killed)
    with pytest.raises(KeyboardInterrupt):
        poise(monkeypatch, "train", recipe, "--out", out, *options)
    monkeypatch.setattr(fitting, "_run", plain)
    poise(monkeypatch, "train", "--resume", out)
    assert "no checkpoint in" in (said := capsys.readouterr().err)
    assert "beginning anew" in said
    expected = bits(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in bits(out).items())
    (out / "training.json").unlink()
    assert "is begun by poise train RECIPE" in refused(monkeypatch, capsys, "train", "--resume", out)


def test_what_is_half_deleted_is_no_run(recipe, monkeypatch, capsys, tmp_path):
    """Whatever dies while the old run is deleted leaves none that a resume would take for the new one."""

    def killed(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    out, plain = tmp_path / "run", shutil.rmtree
    poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 40)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 50, "--overwrite")
    monkeypatch.setattr(shutil, "rmtree", plain)
    assert "expected one folder" in refused(monkeypatch, capsys, "train", "--resume", out)
    poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 50)


def test_a_full_disk_leaves_how_a_run_was_begun_whole_or_not_there(recipe, monkeypatch, capsys, tmp_path):
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = refused(patch, capsys, "train", recipe, "--out", tmp_path / "run", "--training.steps", 40)
    assert "No space left on device while saving how the run in" in said
    assert "is begun: free some space, then begin it again" in said
    assert not [path for path in (tmp_path / "run").iterdir() if "training.json" in path.name]


FULL = Path("/dev/full")
full_device = pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")


@full_device
def test_figures_that_find_no_place_cost_no_step(recipe, monkeypatch, capsys, tmp_path):
    """Neither those of metrics.jsonl nor the windows of a skipped step: one line says so, and weights are the same."""
    plain, opened = DiffusionPolicy.loss, JsonLines.open
    spoilt = lambda self, *a: plain(self, *a) * (torch.nan if self.training and next(steps) == 3 else 1.0)  # noqa: E731
    monkeypatch.setattr(DiffusionPolicy, "loss", spoilt)
    options = ("--training.steps", 60, "--training.save-every", 100)
    steps = iter(range(100))
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "whole", *options)
    assert capsys.readouterr().err.count("are left out") == 0

    def full(self: JsonLines, *arguments: object) -> None:
        opened(self, *arguments)
        assert self._lines is not None
        self._lines.close()
        self._lines = FULL.open("a")

    monkeypatch.setattr(JsonLines, "open", full)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/skipped.jsonl").symlink_to(FULL)
    steps = iter(range(100))
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", *options)
    said = capsys.readouterr().err
    assert said.count(f"figures are left out of {tmp_path / 'run'}, which cannot be written ([Errno 28]") == 1
    assert "free some space, or the next checkpoint fails too" in said
    expected = bits(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in bits(tmp_path / "run").items())


@pytest.mark.parametrize("at", ["metrics.jsonl", "policy.safetensors"])
def test_a_full_disk_at_the_first_figure_or_the_last_save_names_the_remedy(recipe, monkeypatch, capsys, tmp_path, at):
    out, plain, replaced = tmp_path / "run", DiffusionPolicy.save, json_lines.replace_text

    def full(file: Path) -> None:
        if file in (out, out / "metrics.jsonl"):
            raise OSError(errno.ENOSPC, "No space left on device", f"{file}.aside")

    with monkeypatch.context() as patch:
        if at == "metrics.jsonl":
            patch.setattr(json_lines, "replace_text", lambda file, text: full(file) or replaced(file, text))
        else:
            patch.setattr(DiffusionPolicy, "save", lambda self, path, notes: full(path) or plain(self, path, notes))
        said = refused(patch, capsys, "train", recipe, "--out", out, "--training.steps", 40)
    what = "figures" if at == "metrics.jsonl" else "the policy"
    assert f"No space left on device while saving {what} in {out}: free some space, then poise train --resume" in said
    poise(monkeypatch, "train", "--resume", out)
    assert load(out)


def held(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_what_cannot_begin_deletes_no_run(recipe, monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    arguments = ("train", recipe, "--out", out, "--training.steps", 40)
    poise(monkeypatch, *arguments)
    before = held(out)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for module in [m for m in sys.modules if m.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    recipe.write_text(RECIPE.replace("Navigate-v0", "Nowhere-v0"))
    for options, said in (
        (("--training.batch", 100_000), "got a batch of 100000"),
        (("--track", "TensorBoard"), "needs the extra 'tensorboard'"),
        (("--training.evaluate-every", 10), "Nowhere-v0"),
    ):
        assert said in refused(monkeypatch, capsys, *arguments, "--overwrite", *options)
        assert held(out) == before
    (out / "skipped.jsonl").write_text('{"step": 3}\n')
    poise(monkeypatch, *arguments, "--overwrite")
    assert not (out / "skipped.jsonl").read_text()


def test_the_best_by_validation_is_saved_when_it_is_found(recipe, monkeypatch, tmp_path):
    told = iter([3.0, 1.0, 2.0, float("nan"), 4.0])
    monkeypatch.setattr("poise.training.loop.validate", lambda *arguments: Validation(next(told), (), 0.0))
    options = ("--training.steps", 50, "--training.validate-every", 10, "--training.save-every", 1000)
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", *options, "--training.keep-last", 1)
    kept = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert kept == ["step-00000020", "step-00000050"]


def test_the_precision_that_was_computed_in_is_noted(recipe, monkeypatch, tmp_path):
    for capabilities, expected in (({"avx2": True}, "float32"), ({"avx512_bf16": True}, "bfloat16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        options = ("--training.steps", 2, "--training.bfloat16", "--overwrite")
        poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", *options)
        assert load_checkpoint(tmp_path / "run").notes["precision"] == expected


def test_a_folder_in_use_keeps_how_its_run_was_begun(recipe, monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 40)
    before = (out / "training.json").read_text()
    with Checkpoints(out).locked():
        message = refused(monkeypatch, capsys, "train", recipe, "--out", out, "--training.steps", 50, "--overwrite")
    assert "another process trains in" in message
    assert (out / "training.json").read_text() == before


def test_what_never_made_a_step_holds_no_run(recipe, monkeypatch, capsys, tmp_path):
    out = tmp_path / "run"
    assert "batch" in refused(monkeypatch, capsys, "train", recipe, "--out", out, "--training.batch", 100_000)
    assert not out.exists()
    poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 40)


def test_a_stop_ends_a_validation(windows):
    found, calls = learner(windows), []

    def stopped() -> bool:
        calls.append(None)
        return len(calls) > 3

    done = list(train(found, windows, windows, stopped=stopped))
    assert [now.validation for now in done if now.step == TRAINING.steps] == [None]
    assert len(calls) == 4


def test_skipped_steps_name_their_windows(recipe, monkeypatch, capsys, tmp_path):
    plain = DiffusionPolicy.loss
    monkeypatch.setattr(DiffusionPolicy, "loss", lambda *a: plain(*a) * torch.nan)
    message = refused(monkeypatch, capsys, "train", recipe, "--out", tmp_path / "run", "--training.patience", 4)
    assert "the last of 4 such steps in a row" in message
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [len(line["windows"]) for line in lines] == [32] * 4
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_step_that_was_skipped_is_validated_and_logged_all_the_same(recipe, monkeypatch, tmp_path):
    plain = DiffusionPolicy.loss
    spoilt = lambda self, *a: plain(self, *a) * (torch.nan if self.training else 1.0)  # noqa: E731
    monkeypatch.setattr(DiffusionPolicy, "loss", spoilt)
    options = ("--training.steps", 4, "--training.validate-every", 2, "--training.patience", 9)
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", *options)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["gradient_norm"]) for line in lines] == [(2, None, None), (4, None, None)]
    assert all(line["validation"] > 0 for line in lines)


def test_skipped_steps_after_the_checkpoint_are_forgotten(recipe, monkeypatch, tmp_path):
    out = tmp_path / "run"
    poise(monkeypatch, "train", recipe, "--out", out, "--training.steps", 40)
    (out / "skipped.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (7, 40, 41)))
    poise(monkeypatch, "train", "--resume", out)
    assert [json.loads(line)["step"] for line in (out / "skipped.jsonl").read_text().splitlines()] == [7, 40]


class Broken:
    """Environments that end one episode, when the policy is looked at before the training, and then fail."""

    made = 0

    def __init__(self, policy: object, task: object, seeds: range, count: int) -> None:
        type(self).made += 1
        self.active, self.envs = np.ones(1, bool), io.StringIO()

    def step(self) -> list[object]:
        if self.made > 1:
            raise RuntimeError("the simulator is gone")
        return []


def test_an_evaluation_that_fails_costs_no_step(recipe, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Broken, "made", 0)
    monkeypatch.setattr("poise.cli.fitting.Slots", Broken)
    options = ("--training.steps", 40, "--training.evaluate-every", 10, "--training.save-every", 1000)
    with pytest.raises(RuntimeError, match="the simulator is gone"):
        poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", *options)
    assert "step 10 is saved, but could not be tried in closed loop" in capsys.readouterr().err
    kept = Checkpoints(tmp_path / "run")
    manifest = json.loads((kept.folder / "latest/manifest.json").read_text())
    assert (manifest["counts"]["step"], manifest["best"]) == (10, [])


def test_closed_loop_success_chooses_the_best(monkeypatch, tmp_path, recipe):
    text = RECIPE.replace("steps=400, batch=32, save_every=25, validate_every=25", "steps=30, batch=32, save_every=10")
    recipe.write_text(text)
    told = iter([0.0, 0.2, 0.8, 0.5])  # the first one is a look at the environment before the training

    class Rolled:
        """Environments of which one ends its episode at every step."""

        def __init__(self, policy: object, task: object, seeds: range, count: int) -> None:
            assert (seeds[0], len(seeds), count) in ((50_000, 10, 10), (50_000, 1, 1))
            won = next(told) * 10
            self.left = [dataclasses.make_dataclass("E", ["success"])(i < won) for i in range(10)]
            self.envs = io.StringIO()

        @property
        def active(self) -> np.ndarray:
            return np.array([bool(self.left)])

        def step(self) -> list[object]:
            return [self.left.pop()]

    monkeypatch.setattr("poise.cli.fitting.Slots", Rolled)
    options = ("--training.evaluate-every", 10, "--training.episodes", 10, "--training.keep-last", 1)
    poise(monkeypatch, "train", recipe, "--out", tmp_path / "run", *options)
    kept = sorted(p.name for p in (tmp_path / "run/checkpoints").glob("step-*"))
    assert kept == ["step-00000020", "step-00000030"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["success"] for line in lines] == [0.2, 0.8, 0.5]
