import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from poise.data import Batch
from poise.nn import MLP
from poise.plain import concrete, from_plain, to_plain
from poise.policies.actions import Absolute, ActionSpace, Delta, Relative, RelativePose
from poise.policies.baselines import Regression
from poise.policies.spec import PolicySpec
from poise.rotations import axis_angle_to_matrix, matrix_to_sixd

SPACES = (
    Absolute(),
    Relative("tool"),
    Delta("tool"),
    Relative("tool", (0, 2, 3, 4, 5, 6, 7, 8, 10)),
    Delta("tool", (10, 9, 8, 7, 6, 5, 4, 3, 2)),
    RelativePose("tool"),
    RelativePose("tool", (1, 2, 3, 4, 5, 6, 7, 8, 9)),
)


def poses(*shape: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random poses: as nine numbers, as positions and as matrices."""
    generator = torch.Generator().manual_seed(seed)
    position, turn = (torch.randn(*shape, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    matrix = axis_angle_to_matrix(turn)
    return torch.cat([position, matrix_to_sixd(matrix)], -1), position, matrix


def plan_for(space: ActionSpace) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A plan of poses, with a gripper on both sides where the space leaves dimensions out, and an observation."""
    pose, _, _ = poses(4, 6, seed=0)
    tool, _, _ = poses(4, 2, seed=1)
    if getattr(space, "dimensions", None) is None:
        return pose, {"tool": tool}
    gripper = torch.rand(4, 6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return torch.cat([gripper[..., :1], pose, gripper[..., 1:]], -1), {"tool": tool}


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_decoding_inverts_encoding_and_keeps_volumes(space):
    plan, observation = plan_for(space)
    before = plan.clone()
    learned = space.encode(plan, observation)
    torch.testing.assert_close(space.decode(learned, observation), plan, rtol=0, atol=1e-12)
    assert torch.equal(plan, before)
    chosen = getattr(space, "dimensions", None)
    untouched = [] if chosen is None else sorted(set(range(11)) - set(chosen))
    assert torch.equal(learned[..., untouched], plan[..., untouched])
    assert torch.equal(learned, plan) == (space == Absolute())

    def one(flat: torch.Tensor) -> torch.Tensor:
        return space.encode(flat.reshape(1, 6, -1), {"tool": observation["tool"][:1]}).flatten()

    jacobian = torch.autograd.functional.jacobian(one, plan[0].flatten())
    assert torch.linalg.det(jacobian).abs().item() == pytest.approx(1)


def test_relative_and_delta_by_their_formulas():
    actions = torch.tensor([[[1.0, 10.0], [4.0, 20.0], [9.0, 40.0]]])
    seen = {"tool": torch.tensor([[[7.0, 7.0], [1.0, 2.0]]]), "x": torch.tensor([[[7.0], [-1.0]]])}
    assert Relative("tool").encode(actions, seen).tolist() == [[[0, 8], [3, 18], [8, 38]]]
    assert Delta("tool").encode(actions, seen).tolist() == [[[0, 8], [3, 10], [5, 20]]]
    assert Relative("x", (1,)).encode(actions, seen).tolist() == [[[1, 11], [4, 21], [9, 41]]]
    assert Delta("x", (0,)).encode(actions, seen).tolist() == [[[2, 10], [3, 20], [5, 40]]]


def test_a_relative_pose_is_the_product_of_homogeneous_matrices():
    plan, position, matrix = poses(4, 6, seed=0)
    tool, origin, frame = poses(4, 2, seed=1)

    def homogeneous(rotation: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        top = torch.cat([rotation, place[..., None]], -1)
        bottom = torch.tensor([0, 0, 0, 1], dtype=torch.float64).expand(*top.shape[:-2], 1, 4)
        return torch.cat([top, bottom], -2)

    product = torch.linalg.inv(homogeneous(frame, origin)[:, -1:]) @ homogeneous(matrix, position)
    expected = torch.cat([product[..., :3, 3], product[..., :3, 0], product[..., :3, 1]], -1)
    space = RelativePose("tool")
    torch.testing.assert_close(space.encode(plan, {"tool": tool}), expected)
    still = space.encode(tool[:, -1:], {"tool": tool})
    torch.testing.assert_close(still, torch.tensor([0, 0, 0, 1, 0, 0, 0, 1, 0]).double().expand(4, 1, 9))


def test_a_relative_pose_moves_with_the_robot_and_is_always_a_rotation():
    """Learned numbers that are no rotation; a robot that is moved bodily executes the plan moved bodily."""
    learned = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tool, origin, frame = poses(4, 2, seed=1)
    _, shift, turn = poses(seed=5)
    moved = torch.cat([origin @ turn.mT + shift, matrix_to_sixd(turn @ frame)], -1)
    space = RelativePose("tool")
    here, there = (space.decode(learned, {"tool": pose}) for pose in (tool, moved))
    columns = here[..., 3:].unflatten(-1, (2, 3))
    gram = columns @ columns.mT
    torch.testing.assert_close(gram, torch.eye(2).double().expand_as(gram), rtol=0, atol=1e-12)
    torch.testing.assert_close(there[..., :3], here[..., :3] @ turn.mT + shift)
    torch.testing.assert_close(there[..., 3:].unflatten(-1, (2, 3)), columns @ turn.mT)


@pytest.mark.parametrize("space", SPACES, ids=repr)
def test_what_fits_passes_and_travels_as_plain_data(space):
    space.check({"tool": (9,)}, 9 if getattr(space, "dimensions", None) is None else 11)
    plain = json.loads(json.dumps(to_plain(space)))
    assert from_plain(plain, concrete(ActionSpace)) == space


@pytest.mark.parametrize("space", [Relative("tool"), Delta("tool"), RelativePose("tool")], ids=repr)
def test_relative_actions_without_a_state_are_explained(space):
    name = type(space).__name__
    with pytest.raises(
        ValueError,
        match=rf"{name} actions are measured from the feature 'tool', but .* are \['camera', 'joints'\]: observe it, "
        r"name the one that holds the robot's state, or use Absolute\(\)",
    ):
        PolicySpec({"joints": (9,), "camera": (96, 96, 3)}, 9, space=space)
    with pytest.raises(
        ValueError, match=rf"{name} got the feature 'tool' of shape \(7,\), expected \(9,\), a number for"
    ):
        space.check({"tool": (7,)}, 9)
    with pytest.raises(ValueError, match=r"of shape \(3, 3\), expected \(9,\)"):
        space.check({"tool": (3, 3)}, 9)
    for wrong in ((0, 1, 2, 3, 4, 5, 6, 7, 9), (0, 1, 2, 3, 4, 5, 6, 7, 7), (-1, 0, 1, 2, 3, 4, 5, 6, 7)):
        with pytest.raises(ValueError, match=rf"{name} got dimensions=.*, expected different ones of 0 to 8"):
            replace(space, dimensions=wrong).check({"tool": (9,)}, 9)


def test_a_pose_of_other_than_nine_numbers_is_explained():
    with pytest.raises(
        ValueError, match="RelativePose got 7 dimensions of an action, expected nine, position and sixd"
    ):
        RelativePose("tool").check({"tool": (7,)}, 7)
    with pytest.raises(ValueError, match="got 3 dimensions"):
        RelativePose("tool", (0, 1, 2)).check({"tool": (9,)}, 10)


def test_float32_plans_survive_the_round_trip():
    for space in SPACES[1:3]:
        plan = torch.as_tensor(np.random.default_rng(0).uniform(0, 512, (2, 64, 9)), dtype=torch.float32)
        observation = {"tool": plan[:, :2] + 1}
        back = space.decode(space.encode(plan, observation), observation)
        torch.testing.assert_close(back, plan, rtol=0, atol=2e-3)


def test_targets_are_exact_under_autocast():
    """A rotation of poses is a product of matrices, which autocast would round to three digits."""
    spec = PolicySpec(
        {"tool": (9,)}, 9, space=RelativePose("tool"), history=1, horizon=6, network=MLP(8, 1, 8), execute=1
    )
    policy, (plan, _, _), (tool, _, _) = Regression(spec), poses(4, 6, seed=0), poses(4, 1, seed=1)
    for normaliser in (policy.action_normaliser, *policy.observation_normalisers.values()):
        normaliser.scale.fill_(1.0)
        normaliser.offset.fill_(0.0)
    batch = Batch({"tool": tool.float()}, plan.float(), torch.ones(4, 6, dtype=torch.bool))
    with torch.autocast("cpu", torch.bfloat16):
        got = policy.encoded(batch)
    torch.testing.assert_close(got, spec.space.encode(plan, {"tool": tool}).float(), rtol=0, atol=1e-5)
