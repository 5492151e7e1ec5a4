"""Inverse kinematics against forward kinematics."""

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco", reason="the extra manipulation is not installed")

from poise.envs.kinematics import Kinematics  # noqa: E402

ARM = """
<mujoco>
  <compiler angle="radian"/>
  <worldbody>
    <body name="other" pos="1 0 0"><joint name="other" axis="0 0 1"/><geom size="0.05"/></body>
    <body pos="0 0 0.1">
      <joint name="waist" axis="0 0 1" range="-2.5 2.5" limited="true"/><geom size="0.05"/>
      <body pos="0 0 0.1">
        <joint name="shoulder" axis="0 1 0" range="-1.5 1.5" limited="true"/><geom size="0.05"/>
        <body pos="0 0 0.3">
          <joint name="elbow" axis="0 1 0" range="-1.7 1.7" limited="true"/><geom size="0.05"/>
          <body pos="0.2 0 0">
            <joint name="roll" axis="1 0 0" range="-3 3" limited="true"/><geom size="0.05"/>
            <body pos="0.1 0 0">
              <joint name="pitch" axis="0 1 0" range="-1.8 1.8" limited="true"/><geom size="0.05"/>
              <body pos="0.05 0 0">
                <joint name="turn" axis="1 0 0"/><geom size="0.05"/><site name="tool" pos="0.1 0 0.01"/>
              </body>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body name="free" pos="0 2 0"><freejoint name="free"/><geom size="0.05"/></body>
  </worldbody>
</mujoco>
"""
JOINTS = ["waist", "shoulder", "elbow", "roll", "pitch", "turn"]


@pytest.fixture(scope="module")
def arm():
    model = mujoco.MjModel.from_xml_string(ARM)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data, Kinematics(model, "tool", JOINTS)


def drawn(kinematics, generator):
    return generator.uniform(np.maximum(kinematics.low, -np.pi), np.minimum(kinematics.high, np.pi))


def truth(model, data, joints):
    """The pose by MuJoCo alone."""
    copy = mujoco.MjData(model)
    for name, value in zip(JOINTS, joints, strict=True):
        copy.joint(name).qpos[0] = value
    mujoco.mj_forward(model, copy)
    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, copy.site("tool").xmat)
    return copy.site("tool").xpos.copy(), quaternion


def degrees(a, b):
    return np.degrees(2 * np.arccos(min(1.0, abs(a @ b))))


def test_reachable_poses_are_reached_within_limits_from_anywhere(arm):
    model, data, kinematics = arm
    generator = np.random.default_rng(0)
    for _ in range(30):
        position, quaternion = truth(model, data, drawn(kinematics, generator))
        solution = kinematics.solve(data, position, quaternion)
        found, turned = truth(model, data, solution.joints)
        assert solution.reached
        assert np.linalg.norm(found - position) < 1e-3
        assert degrees(turned, quaternion) < 0.5
        assert (solution.joints >= kinematics.low).all()
        assert (solution.joints <= kinematics.high).all()


def test_a_target_close_by_keeps_the_posture(arm):
    model, data, kinematics = arm
    joints = np.array([0.3, 0.2, 0.5, 0.4, -0.6, 0.2])
    position, quaternion = truth(model, data, joints + 0.05)
    np.testing.assert_allclose(
        kinematics.solve(data, position, quaternion, start=joints).joints, joints + 0.05, atol=2e-3
    )


def test_the_position_alone_leaves_the_rotation_free(arm):
    model, data, kinematics = arm
    solution = kinematics.solve(data, [0.3, 0.1, 0.3])
    assert solution.distance < 1e-3
    assert solution.angle == 0
    np.testing.assert_allclose(truth(model, data, solution.joints)[0], [0.3, 0.1, 0.3], atol=1e-3)


def test_what_is_out_of_reach_is_approached_and_reported(arm):
    _, data, kinematics = arm
    solution = kinematics.solve(data, [2.0, 0.0, 0.2])
    assert not solution.reached
    assert 1.2 < solution.distance < 1.6
    assert (solution.joints >= kinematics.low).all()
    assert (solution.joints <= kinematics.high).all()


def test_the_simulation_is_not_touched(arm):
    model, data, kinematics = arm
    before = data.qpos.copy(), data.site("tool").xpos.copy(), data.qvel.copy()
    kinematics.solve(data, [0.3, 0.1, 0.3], [0.0, 1.0, 0.0, 0.0])
    kinematics.follow(data, np.zeros(6), [0.3, 0.1, 0.3])
    kinematics.pose(data, np.ones(6))
    for was, now in zip(before, (data.qpos, data.site("tool").xpos, data.qvel), strict=True):
        np.testing.assert_array_equal(was, now)


def test_one_step_at_a_time_follows_a_moving_target(arm):
    model, data, kinematics = arm
    joints = np.array([0.0, 0.2, 0.5, 0.0, -0.6, 0.0])
    start, quaternion = truth(model, data, joints)
    for k in range(100):
        target = start + [0.0, 0.1 * np.sin(k / 15), 0.05 * (1 - np.cos(k / 15))]
        before, joints = joints, kinematics.follow(data, joints, target, quaternion, longest=0.1)
        assert np.abs(joints - before).max() <= 0.1 + 1e-12
        position, turned = truth(model, data, joints)
        assert np.linalg.norm(position - target) < 3e-3  # which moves by up to 7 mm a step
        assert degrees(turned, quaternion) < 0.5


def test_steps_stay_small_at_a_singular_pose(arm):
    _, data, kinematics = arm
    stretched = np.array([0.0, 0.0, -np.pi / 2, 0.0, 0.0, 0.0])  # straight up: it cannot go higher
    step = kinematics.follow(data, stretched, kinematics.pose(data, stretched)[0] + [0, 0, 0.05]) - stretched
    assert np.abs(step).max() < 0.5


@pytest.mark.parametrize(
    ("site", "joints", "message"),
    [
        ("toll", JOINTS, "got the site 'toll', expected one of 1 of the model, such as 'tool'"),
        ("tool", ["wasit"], "got the joint 'wasit', expected one of 8 of the model, such as 'waist'"),
        ("tool", ["waist", "free"], r"hinges or slides only: \['free'\]"),
        ("tool", [], "expected at least one"),
    ],
)
def test_wrong_names_are_told(arm, site, joints, message):
    with pytest.raises(ValueError, match=message):
        Kinematics(arm[0], site, joints)


@pytest.mark.parametrize(
    ("position", "quaternion"), [([0, 0], None), ([0, 0, 0], [1, 0, 0]), ([0, 0, 0], [0, 0, 0, 0])]
)
def test_wrong_targets_are_told(arm, position, quaternion):
    with pytest.raises(ValueError, match="expected a position .3,. in m and a quaternion .4,., w first and not zero"):
        arm[2].solve(arm[1], position, quaternion)
