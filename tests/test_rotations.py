import math

import numpy as np
import pytest
import torch

from poise import rotations

Rotation = pytest.importorskip("scipy.spatial.transform").Rotation

ANGLES = (0.0, 1e-8, 1e-3, math.sqrt(1e-3), 0.5, math.pi / 2, 3.0, math.pi - 1e-8, math.pi)
WORDS = {"sixd": (6,), "matrix": (3, 3), "quaternion": (4,), "axis_angle": (3,)}
PAIRS = [(a, b) for a in WORDS for b in WORDS if a != b]


def axes(count: int = 40) -> np.ndarray:
    """Random unit axes, and those along which components vanish."""
    random = np.random.default_rng(0).normal(size=(count, 3))
    special = [[1, 0, 0], [0, -1, 0], [0, 0, 1], [1, 1, 0], [0, -1, 1], [1, -1, 1], [-1, -1, -1]]
    both = np.vstack([random, special])
    return both / np.linalg.norm(both, axis=1, keepdims=True)


def vectors() -> np.ndarray:
    """Axis-angles of every angle about every axis."""
    return np.concatenate([angle * axes() for angle in ANGLES])


def told(word: str) -> torch.Tensor:
    """SciPy's account of those rotations."""
    rotation = Rotation.from_rotvec(vectors())
    matrix = rotation.as_matrix()
    given = {
        "sixd": np.concatenate([matrix[:, :, 0], matrix[:, :, 1]], 1),
        "matrix": matrix,
        "quaternion": rotation.as_quat(canonical=True),
        "axis_angle": rotation.as_rotvec(),
    }
    return torch.as_tensor(given[word])


def convert(first: str, second: str):
    return getattr(rotations, f"{first}_to_{second}")


def up_to_sign(got: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The distance, where v and -v are one rotation."""
    return torch.minimum((got - expected).norm(dim=-1), (got + expected).norm(dim=-1))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_map_agrees_with_scipy_at_every_angle(first, second):
    got, expected = convert(first, second)(told(first)), told(second)
    assert got.shape == expected.shape
    half_turn = torch.as_tensor(np.linalg.norm(vectors(), axis=1) > math.pi - 1e-7)
    if second in ("quaternion", "axis_angle"):
        # At half a turn both signs are the same rotation, and rounding chooses.
        assert up_to_sign(got, expected)[half_turn].max() < 1e-7
        got, expected = got[~half_turn], expected[~half_turn]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_round_trips_are_exact_to_rounding(first, second):
    there = convert(first, second)(told(first))
    back = convert(second, first)(there)
    back, given = (x if first == "matrix" else convert(first, "matrix")(x) for x in (back, told(first)))
    torch.testing.assert_close(back, given, rtol=0, atol=1e-14)


def test_a_tiny_angle_keeps_all_its_digits():
    tiny = 1e-8 * torch.as_tensor(axes())
    back = rotations.matrix_to_axis_angle(rotations.axis_angle_to_matrix(tiny))
    torch.testing.assert_close(back, tiny, rtol=1e-12, atol=1e-22)


def test_six_numbers_are_the_first_column_and_then_the_second():
    quarter = torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64)  # x goes to y, and y to -x
    expected = torch.tensor([0, 1, 0, -1, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(rotations.axis_angle_to_sixd(quarter), expected)
    scalar_last = torch.tensor([0, 0, math.sqrt(0.5), math.sqrt(0.5)], dtype=torch.float64)
    torch.testing.assert_close(rotations.sixd_to_quaternion(expected), scalar_last)


def test_any_six_numbers_become_a_rotation_that_keeps_the_first_direction():
    noisy = told("sixd") + 0.3 * torch.randn(len(vectors()), 6, generator=torch.Generator().manual_seed(0))
    matrix = rotations.sixd_to_matrix(noisy)
    torch.testing.assert_close(matrix.mT @ matrix, torch.eye(3).double().expand_as(matrix), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(matrix), torch.ones(len(matrix)).double())
    first, second = noisy[:, :3], noisy[:, 3:]
    torch.testing.assert_close(matrix[..., 0], first / first.norm(dim=1, keepdim=True))
    assert ((matrix[..., 1] * second).sum(1) > 0).all()
    assert (matrix[..., 2] * second).sum(1).abs().max() < 1e-12


def test_quaternions_come_with_their_canonical_sign():
    quaternion = told("quaternion")
    assert (rotations.axis_angle_to_quaternion(3 * torch.as_tensor(vectors()))[:, 3] >= 0).all()
    got = rotations.matrix_to_quaternion(rotations.quaternion_to_matrix(-5 * quaternion))
    assert (got[:, 3] >= 0).all()
    assert up_to_sign(got, quaternion).max() < 1e-12
    assert rotations.quaternion_to_axis_angle(-quaternion).norm(dim=1).max() <= math.pi + 1e-12
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    assert rotations.matrix_to_quaternion(half).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_derivatives_are_exact_at_the_identity_and_beside_it(first, second):
    """Against central differences, in the numbers of the first notation, at angles 0, 1e-8 and 2."""
    convert_one = convert(first, second)
    for angle in (0.0, 1e-8, 2.0):
        rotation = torch.tensor([0.36 * angle, -0.48 * angle, 0.8 * angle], dtype=torch.float64)
        x = rotation if first == "axis_angle" else convert("axis_angle", first)(rotation)
        jacobian = torch.autograd.functional.jacobian(convert_one, x).reshape(-1, x.numel())
        step = 1e-6 * torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape)
        difference = (convert_one(x + step) - convert_one(x - step)) / 2e-6
        torch.testing.assert_close(jacobian.T, difference.flatten(1), rtol=0, atol=1e-7)


def test_float32_and_any_leading_shape():
    given = torch.as_tensor(vectors()).float()[:350].reshape(5, 7, 10, 3)
    got = rotations.axis_angle_to_sixd(given)
    assert got.dtype == torch.float32
    assert got.shape == (5, 7, 10, 6)
    torch.testing.assert_close(got.double().flatten(0, 2), told("sixd")[:350], rtol=0, atol=1e-6)
    one = rotations.axis_angle_to_matrix(given[0, 0, 0])
    torch.testing.assert_close(one, rotations.sixd_to_matrix(got[0, 0, 0]))


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_wrong_shapes_are_explained(first, second):
    wanted = ", ".join(map(str, WORDS[first]))
    wrong = (2, 5, *WORDS[first][1:])
    with pytest.raises(ValueError, match=rf"as {first} of shape \(\.\.\., {wanted}\), got \({str(wrong)[1:-1]}\)"):
        convert(first, second)(torch.zeros(wrong))


def test_the_series_are_exact_up_to_where_they_end():
    """Just below the angle at which the closed form takes over, against the arcsine and the sine of this machine."""
    half = math.sqrt(0.999e-3)
    quaternion = torch.tensor([half, 0, 0, math.sqrt(1 - half**2)], dtype=torch.float64)
    got = rotations.quaternion_to_axis_angle(quaternion)[0].item()
    assert got == pytest.approx(2 * math.asin(half), rel=1e-15, abs=0)
    axis_angle = torch.tensor([half, 0, 0], dtype=torch.float64)
    assert rotations.axis_angle_to_quaternion(axis_angle)[0].item() == pytest.approx(
        math.sin(half / 2), rel=1e-15, abs=0
    )
