r"""Rotations in four notations, and the maps between them.

| word | shape | what |
|---|---|---|
| `sixd` | `(..., 6)` | the first column of the matrix, then the second (Zhou et al. 2019, arXiv 1812.07035) |
| `matrix` | `(..., 3, 3)` | orthogonal with determinant 1; columns are the turned axes |
| `quaternion` | `(..., 4)` | `x, y, z, w`: the scalar last, as ROS and SciPy have it |
| `axis_angle` | `(..., 3)` | the axis times the angle in radians |

A network should learn `sixd`: it alone is continuous, and whatever six numbers it predicts are made a rotation, unless
the columns are parallel. Some libraries flatten the first two *rows* instead: those are the columns of the inverse.

A quaternion is returned with `w >= 0`, and an axis-angle with an angle of at most pi; at half a turn both signs are the
same rotation, and rounding chooses. All maps are exact to rounding at any angle and can be differentiated, also at the
identity.
"""

import torch
from torch import Tensor

_SMALL = 1e-3  # squared angle below which a series is exact to float64


def sixd_to_matrix(sixd: Tensor) -> Tensor:
    r"""Two columns to a rotation, by Gram-Schmidt (Zhou et al. 2019, arXiv 1812.07035).

    $$ b_1 = \frac{a_1}{|a_1|}, \qquad b_2 = \frac{a_2 - (b_1 \cdot a_2) b_1}{|a_2 - (b_1 \cdot a_2) b_1|}, \qquad
       b_3 = b_1 \times b_2. $$

    Args:
        sixd: `(..., 6)`, of any lengths and angle; parallel or zero columns have no rotation and give NaN.

    Raises:
        ValueError: Another last dimension.
    """
    first, second = _sized("sixd", sixd, 6).unflatten(-1, (2, 3)).unbind(-2)
    first = _unit(first)
    second = _unit(second - (first * second).sum(-1, keepdim=True) * first)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def matrix_to_sixd(matrix: Tensor) -> Tensor:
    """The first two columns, `(..., 6)`.

    Args:
        matrix: `(..., 3, 3)`.

    Raises:
        ValueError: Other last dimensions.
    """
    return _sized("matrix", matrix, 3, 3)[..., :2].mT.flatten(-2)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    r"""The rotation of a unit quaternion with vector part v and scalar part w.

    $$ R = I + 2 w [v]_\times + 2 [v]_\times^2, \qquad [v]_\times u = v \times u. $$

    Args:
        quaternion: `(..., 4)`, of any length and sign but zero.

    Raises:
        ValueError: Another last dimension.
    """
    x, y, z, w = _unit(_sized("quaternion", quaternion, 4)).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    r"""The unit quaternion `(..., 4)` with w >= 0.

    The entries of $4 q q^\top$ are linear in those of R; its row with the largest diagonal entry is divided by its
    length, so that nothing small is ever a divisor.

    Args:
        matrix: `(..., 3, 3)`, a rotation.

    Raises:
        ValueError: Other last dimensions.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in _sized("matrix", matrix, 3, 3).unbind(-2))
    entries = [
        *(1 + xx - yy - zz, xy + yx, xz + zx, zy - yz),
        *(xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx),
        *(xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy),
        *(zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz),
    ]
    outer = torch.stack(entries, -1).unflatten(-1, (4, 4))
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    return _canonical(_unit(outer.take_along_dim(best, -2).squeeze(-2)))


def axis_angle_to_quaternion(axis_angle: Tensor) -> Tensor:
    r"""The unit quaternion with w >= 0 of the rotation by theta about the unit axis u.

    $$ q = \pm\left(u \sin\tfrac\theta2, \cos\tfrac\theta2\right). $$

    Args:
        axis_angle: `(..., 3)`, of any angle.

    Raises:
        ValueError: Another last dimension.
    """
    square = _sized("axis_angle", axis_angle, 3).square().sum(-1, keepdim=True)
    small = square < _SMALL
    # The root of zero has no derivative: where the series counts, the other branch gets a harmless one.
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sine = torch.where(small, 1 / 2 - square / 48 + square**2 / 3840 - square**3 / 645120, (angle / 2).sin() / angle)
    cosine = torch.where(small, 1 - square / 8 + square**2 / 384 - square**3 / 46080, (angle / 2).cos())
    return _canonical(torch.cat([sine * axis_angle, cosine], -1))


def quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    r"""Axis times angle, at most pi, of a unit quaternion with vector part v and scalar part w >= 0.

    $$ \frac{v}{|v|}\, 2 \operatorname{atan2}(|v|, w). $$

    Args:
        quaternion: `(..., 4)`, of any length and sign but zero.

    Raises:
        ValueError: Another last dimension.
    """
    vector, scalar = _canonical(_unit(_sized("quaternion", quaternion, 4))).split([3, 1], -1)
    square = vector.square().sum(-1, keepdim=True)
    small = square < _SMALL
    sine = torch.where(small, torch.ones_like(square), square).sqrt()
    series = 2 * (1 + square / 6 + 3 * square**2 / 40 + 5 * square**3 / 112 + 35 * square**4 / 1152)
    return vector * torch.where(small, series, 2 * torch.atan2(sine, scalar) / sine)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """`(..., 3)` to `(..., 3, 3)`, through the quaternion."""
    return quaternion_to_matrix(axis_angle_to_quaternion(axis_angle))


def axis_angle_to_sixd(axis_angle: Tensor) -> Tensor:
    """`(..., 3)` to `(..., 6)`, through the quaternion."""
    return quaternion_to_sixd(axis_angle_to_quaternion(axis_angle))


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """`(..., 3, 3)` to `(..., 3)`, through the quaternion."""
    return quaternion_to_axis_angle(matrix_to_quaternion(matrix))


def quaternion_to_sixd(quaternion: Tensor) -> Tensor:
    """`(..., 4)` to `(..., 6)`, through the matrix."""
    return matrix_to_sixd(quaternion_to_matrix(quaternion))


def sixd_to_axis_angle(sixd: Tensor) -> Tensor:
    """`(..., 6)` to `(..., 3)`, through the matrix."""
    return matrix_to_axis_angle(sixd_to_matrix(sixd))


def sixd_to_quaternion(sixd: Tensor) -> Tensor:
    """`(..., 6)` to `(..., 4)`, through the matrix."""
    return matrix_to_quaternion(sixd_to_matrix(sixd))


def _sized(word: str, values: Tensor, *last: int) -> Tensor:
    if values.shape[-len(last) :] != last:
        raise ValueError(
            f"Expected a rotation as {word} of shape (..., {', '.join(map(str, last))}), got {tuple(values.shape)}"
        )
    return values


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm(dim=-1, keepdim=True)


def _canonical(quaternion: Tensor) -> Tensor:
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


__all__ = [
    "axis_angle_to_matrix",
    "axis_angle_to_quaternion",
    "axis_angle_to_sixd",
    "matrix_to_axis_angle",
    "matrix_to_quaternion",
    "matrix_to_sixd",
    "quaternion_to_axis_angle",
    "quaternion_to_matrix",
    "quaternion_to_sixd",
    "sixd_to_axis_angle",
    "sixd_to_matrix",
    "sixd_to_quaternion",
]
