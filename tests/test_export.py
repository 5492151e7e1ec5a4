"""Whole policies as programs: their plans are those of the policy, whatever it is made of."""

import dataclasses
import json
import re
import zipfile
from collections.abc import Callable

import onnxruntime
import pytest
import torch
from exported import SMALL, built
from safetensors import safe_open

from poise.cli import main
from poise.data import Crop
from poise.guidance import clipped
from poise.interop import onnx_export
from poise.interop import program as programs
from poise.interop.onnx_export import export_onnx
from poise.interop.program import NOISE, export_torch, inputs, program
from poise.limits import ActionLimits
from poise.nn import (
    CNN,
    DiT,
    Fusion,
    GroupNorm,
    ImageTransformer,
    Joint,
    Network,
    NetworkSpec,
    SmallCNN,
    Steps,
    Transformer,
    UNet1D,
    Vector,
)
from poise.plain import concrete
from poise.policies import (
    Delta,
    DiffusionPolicy,
    MinimalIterative,
    MixtureRegression,
    PolicySpec,
    Regression,
    Relative,
    RelativePose,
    Safety,
)
from poise.predictions import Epsilon
from poise.sampling import (
    DDPM,
    DormandPrince,
    DPMSolverPP,
    Heun,
    PredictorCorrector,
    Sampler,
    UniformLogSNR,
)
from poise.sampling.adaptive import Adaptive
from poise.schedules import Tabulated

STATES = {"arm.pose": (3,), "goal": (2,)}
BOTH = {"hand": (24, 30, 3), "arm.pose": (3,)}
CHAIN = Tabulated.squared_cosine(20)
CAMERA = CNN(SmallCNN((8, 16), GroupNorm(4)), width=8)
UNET = UNet1D((8, 16), 3, 4, 8)


def spec_of(observations=STATES, network=SMALL, evaluations=2, **changes):
    return PolicySpec(observations, 2, network=network, horizon=8, execute=4, evaluations=evaluations, **changes)


# Each axis of a policy once, several at a time; tests/test_runtime.py has more as ONNX.
WHOLE = {
    "published": spec_of(
        {"observation.state": (2,)},
        dataclasses.replace(UNET, level=Steps(CHAIN)),
        schedule=CHAIN,
        prediction=Epsilon(),
        sampler=DDPM(),
        evaluations=1,
        space=Relative("observation.state"),
        lead=1,
    ),
    "pictures": spec_of(
        BOTH,
        DiT(8, 1, 2),
        encoder=Joint(CAMERA),
        augmentations=(Crop(height=20, width=22),),
        optional={"arm.pose": 0.3},
        sampler=DPMSolverPP(eta=1.0),
        temperature=0.5,
    ),
}
PARTS = {
    "attention": spec_of(
        BOTH,
        Transformer(8, 1, 2),
        encoder=Fusion(ImageTransformer(6, 8, 1, 2), width=8, depth=1, heads=2),
        evaluations=1,
        sampler=Heun(),
        grid=UniformLogSNR(),
        bound=None,
    ),
    "camera": spec_of(
        {"hand": (24, 30, 3), "eye": (16, 16, 1)},
        evaluations=1,
        encoder=CNN(SmallCNN((8,), GroupNorm(4)), shared=False),
    ),
    "patches": spec_of({"hand": (24, 30, 3)}, evaluations=1, encoder=ImageTransformer(6, 8, 1, 2, pooled=False)),
    "rotations": spec_of(
        {"turn": (4,), "axis": (3,), "angle": (2,)},
        evaluations=1,
        encoder=Vector(8, angles=("angle",), rotations=("turn", "axis")),
    ),
    "delta": spec_of(evaluations=1, space=Delta("goal")),
    "pose": dataclasses.replace(spec_of({"pose": (9,)}, evaluations=1), action=9, space=RelativePose("pose")),
}


def handed(noise):
    rest = iter([*noise[:1], *(noise[1] if len(noise) > 1 else ())])
    return lambda x, t, s: next(rest)


def near(got, policy, observation, noise):
    plan = policy.plan(observation, handed(noise))
    assert plan.std() > 0.01
    assert (torch.as_tensor(got) - plan).abs().max() <= 1e-5 * (plan.max() - plan.min())


def check_program(policy):
    made = program(policy)
    for batch in (1, 5):
        observation, noise = inputs(policy.spec, batch, made.draws, seed=7)
        near(made.exported.module()(observation, *noise), policy, observation, noise)
    return made


@pytest.mark.parametrize("spec", WHOLE.values(), ids=WHOLE)
def test_onnxruntime_and_the_program_plan_as_the_policy_does(spec, tmp_path, monkeypatch):
    policy = built(spec)
    made = check_program(policy)
    monkeypatch.setattr(onnx_export, "program", lambda _: made)
    exported = export_onnx(policy, tmp_path / "new" / "policy.onnx")
    session = onnxruntime.InferenceSession(exported.path)
    for batch in (1, 5):
        observation, noise = inputs(spec, batch, exported.draws, seed=7)
        feed = {**observation, **dict(zip(NOISE, noise, strict=False))}
        (plan,) = session.run(["plan"], {name: values.numpy() for name, values in feed.items()})
        assert plan.shape == (batch, spec.planned, spec.action)
        near(plan, policy, observation, noise)
    assert [path.name for path in exported.path.parent.iterdir()] == ["policy.onnx"]  # no weights beside it
    assert b"src/poise" not in exported.path.read_bytes()  # nor where the source lies
    assert all(parameter.requires_grad for parameter in policy.parameters())  # and the policy is as before
    assert not any(parameter.requires_grad for parameter in made.exported.parameters())


@pytest.mark.parametrize("spec", PARTS.values(), ids=PARTS)
def test_programs_plan_as_their_policy_does(spec):
    check_program(built(spec))


@dataclasses.dataclass(frozen=True)
class _Tanh(NetworkSpec):
    """The least that is not linear, for tracing takes its time by the operation."""

    function: Callable = torch.tanh

    def build(self, horizon, action, tokens):
        return _TanhNetwork(tokens, self.function)


class _TanhNetwork(Network):
    def __init__(self, tokens, function):
        super().__init__()
        self.weight, self.function = torch.nn.Parameter(torch.ones(tokens)), function

    def prepare(self, tokens):
        return (tokens * self.weight).sum((1, 2))[:, None, None]

    def forward(self, x, log_snr, prepared):
        return self.function(x + prepared + log_snr[:, None, None])


# Of two steps: the start, and every step, or where noise is added; Churn has no room for more at the start.
DRAWS = {"DDPM": 3, "EulerMaruyama": 3, "ExponentialSDE": 3, "PredictorCorrector": 3}
DRAWS |= {"Churn": 2, "Consistency": 2, "Restart": 2}
SAMPLERS = [kind() for kind in concrete(Sampler).values()]


@pytest.mark.parametrize("sampler", [*SAMPLERS, DPMSolverPP(eta=1.0)], ids=str)
def test_every_sampler_is_exported_or_refused(sampler):
    policy = built(spec_of(network=_Tanh(), sampler=sampler, evaluations=sampler.extra + 2 * sampler.evaluations))
    if isinstance(sampler, Adaptive):
        with pytest.raises(ValueError, match=r"whose strides depend on the data, expected one of a fixed number"):
            program(policy)
    else:
        expected = 3 if sampler == DPMSolverPP(eta=1.0) else DRAWS.get(type(sampler).__name__, 1)
        assert check_program(policy).draws == expected


@pytest.mark.parametrize("kind", [Regression, MinimalIterative])
def test_baselines_without_noise_are_exported(kind):
    assert check_program(built(spec_of(), kind)).draws == 0


def test_the_order_of_the_observations_does_not_matter():
    policy = built(spec_of())
    observation, noise = inputs(policy.spec, 2, 1)
    backwards = dict(reversed(observation.items()))
    near(program(policy).exported.module()(backwards, *noise), policy, observation, noise)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            lambda: built(spec_of()).using(guide=lambda denoise, seen: clipped(denoise, 0, 1)),
            "guidance, which is Python",
        ),
        (
            lambda: built(spec_of(sampler=PredictorCorrector(DormandPrince()))),
            r"got the sampler .*--sampler DPMSolverPP",
        ),
        (lambda: built(spec_of(), MixtureRegression), r"MixtureRegression, which asks for noise of shapes \[\(1, 1\)"),
        (lambda: built(spec_of({"noise": (2,)})), r"observations named \['noise'\], which are the inputs of noise"),
        (lambda: DiffusionPolicy(spec_of()), r"'arm.pose' has no statistics"),
    ],
)
def test_what_no_program_can_hold_is_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        program(policy())


def test_operations_that_cannot_be_exported_are_named_with_what_to_do(tmp_path):
    by_value = built(spec_of(network=_Tanh(lambda x: x if x.sum() > 0 else -x), evaluations=1))
    with pytest.raises(ValueError, match=r"cannot be traced for any batch \(.*\), expected .*write torch.where for if"):
        program(by_value)
    by_size = built(spec_of(network=_Tanh(lambda x: x / len(x)), evaluations=1))
    with pytest.raises(ValueError, match=r"cannot be traced for any batch .*and x.shape\[0\] for len\(x\)"):
        program(by_size)
    unknown = built(spec_of(network=_Tanh(torch.special.bessel_j0), evaluations=1))
    with pytest.raises(ValueError, match=r"no counterpart in ONNX \(.*bessel_j0.*or --format torch"):
        export_onnx(unknown, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_the_extra_is_named_where_a_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ImportError, match=r"needs \['onnxscript'\] of the extra 'onnx': pip install 'poise\[onnx\]'"):
        export_onnx(built(spec_of()), tmp_path / "policy.onnx")


def test_a_program_that_plans_otherwise_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "_TOLERANCE", -1.0)
    policy = built(spec_of(network=_Tanh(), evaluations=1))
    for export in (export_torch, export_onnx):
        with pytest.raises(ValueError, match=r"differs by .* of the range of plans from the policy, expected at most"):
            export(policy, tmp_path / "policy.pt2")
    with pytest.raises(ValueError, match=r"export_torch got .*policy.zip, expected a file that ends in .pt2"):
        export_torch(policy, tmp_path / "policy.zip")
    assert not list(tmp_path.iterdir())


def test_the_range_of_plans_is_that_of_each_dimension():
    """One action in thousands, one in thousandths: an error of a thousandth of the second is found."""
    policy = built(spec_of())
    policy.set_constants("action", torch.tensor([1e-3, 1e3]), torch.zeros(2))
    made = program(policy)

    def wrong(observation, noise):
        return made.exported.module()(observation, *noise) + torch.tensor([0.0, 1e-6])

    assert programs.compared(made, lambda observation, noise: made.exported.module()(observation, *noise)) < 1e-5
    with pytest.raises(ValueError, match="differs by"):
        programs.compared(made, wrong)


def test_facts_tell_what_the_program_does_not():
    policy = built(spec_of(sampler=DDPM(), bound=0.5))
    facts = program(policy).facts()
    assert facts["observations"] == {"arm.pose": [3], "goal": [2]}
    assert (facts["draws"], facts["noise"]) == (3, ["noise", "step_noise"])
    # a scale of 1/3 and an offset of 0.9 take actions from (-0.5 - 0.9) * 3 to (0.5 - 0.9) * 3
    assert facts["limits"] == [pytest.approx([-4.2, -4.2]), pytest.approx([-1.2, -1.2])]
    observation, noise = inputs(policy.spec, 64, 3)
    plan = policy.plan(observation, handed(noise))
    assert plan.min() == pytest.approx(-4.2)
    assert plan.max() == pytest.approx(-1.2)
    assert program(built(spec_of(space=Relative("goal")))).facts()["limits"] is None
    assert facts["safety"] is None


def test_the_command_line_exports_a_program(tmp_path, monkeypatch, capsys):
    policy = built(spec_of())
    safety = Safety((-1.0, -1.0), (1.0, 1.0), (0.5, 0.25))
    policy.save(tmp_path / "policy.safetensors", safety.noted())
    words = ["--format", "torch", "--sampler", "DDPM", "--evaluations", "3"]
    monkeypatch.setattr("sys.argv", ["poise", "export", str(tmp_path), str(tmp_path / "policy.pt2"), *words])
    main()
    told = capsys.readouterr().out
    assert re.search(
        r"policy\.pt2: 0\.\d\d MB, 4 draws of noise a plan\n.*differ by at most \d\.\de[-+]\d\d of their range", told
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.pt2", "policy.safetensors"]
    with zipfile.ZipFile(tmp_path / "policy.pt2") as file:
        assert not any(b"src/poise" in file.read(name) for name in file.namelist())  # where the source lies
    extra = {"poise.json": ""}
    read = torch.export.load(tmp_path / "policy.pt2", extra_files=extra).module()
    policy = policy.using(sampler=DDPM(), evaluations=3)
    observation, noise = inputs(policy.spec, 5, 4, seed=7)
    near(read(observation, *noise), policy, observation, noise)
    facts = json.loads(extra["poise.json"])
    assert ActionLimits(**facts["safety"]).change == [0.5, 0.25]
    assert facts["sampling"].startswith("DDPM(upper=0.0), UniformTime(), 3 evaluations")
    with safe_open(tmp_path / "policy.safetensors", "pt") as checkpoint:
        assert facts["tensors"] == checkpoint.metadata()["sha256"]


def test_a_checkpoint_without_limits_is_exported_when_that_is_asked_for(tmp_path, monkeypatch, capsys):
    """As poise serve has it."""
    built(spec_of(evaluations=1)).save(tmp_path / "policy.safetensors")
    words = ["poise", "export", str(tmp_path), str(tmp_path / "policy.pt2"), "--format", "torch"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises((SystemExit, ValueError)) as refused:
        main()
    said = str(refused.value) + capsys.readouterr().err
    assert "expected the limits of its demonstrations" in said
    assert "Or export without limits: --no-safety" in said
    assert not (tmp_path / "policy.pt2").exists()
    monkeypatch.setattr("sys.argv", [*words, "--no-safety"])
    main()
    assert "the file has no limits: whatever the policy plans is sent to the robot as it is" in capsys.readouterr().err
    extra = {"poise.json": ""}
    torch.export.load(tmp_path / "policy.pt2", extra_files=extra)
    assert json.loads(extra["poise.json"])["safety"] is None
