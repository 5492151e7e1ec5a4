"""What the importers share: how a policy is described, and its tensors named.

LeRobot, diffusion_policy and robomimic have the U-Net of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137) and the
image encoder of robomimic (Mandlekar et al. 2021, arXiv 2108.03298). They are ours under other names; only the order of
the features differs.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poise.data import Crop, Limits, Pixels, Scaling, Unscaled
from poise.data.untrusted import MAX_FEATURES, DataError
from poise.interop.chain import Chain
from poise.interop.fields import MAX_SIZE, Fields
from poise.interop.tensors import columns, filled
from poise.nn import FiLM, Steps, UNet1D
from poise.policies import Checkpoint, PolicySpec

GROUPS = 8
DEPTHS = {"resnet18": 18, "resnet34": 34}
_CAMERAS, _TAKEN = 64, {"action", "", *dir(nn.ModuleDict())}  # names that no part of a module can have
_NETWORK, _EYES, _TRUNK = "diffusion.network.", "encoder.parts.0.eyes.", "trunk.module."
_LAYERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
_ENDS = {"pool.keypoints.weight": "pool.nets.weight", "project.weight": "nets.3.weight", "project.bias": "nets.3.bias"}
_IDLE = ".num_batches_tracked", "_dummy_variable"  # counters, and parameters without a number


class Affine(NamedTuple):
    """A normalisation, y = scale x + offset, with a number for each of a feature, or for each channel of an image."""

    scale: Tensor
    offset: Tensor
    rule: Scaling | None = None

    def scaling(self, image: bool) -> Scaling:
        """The rule that it came from, or stands for, for training further."""
        if image:
            scale = 255 * self.scale
            return Pixels(tuple((-self.offset / scale).tolist()), tuple((1 / scale).tolist()))
        same = bool((self.scale == 1).all()) and not bool(self.offset.any())
        return self.rule or (Unscaled() if same else Limits())


def core_name(name: str) -> str:
    """Our name of a tensor of a camera's encoder as robomimic's VisualCore has it."""
    if not name.startswith(_TRUNK):
        return _ENDS[name]
    layer, _, rest = name.removeprefix(_TRUNK).partition(".")
    return f"backbone.nets.{_LAYERS[layer]}.{rest}"


@dataclass(frozen=True)
class Outline:
    """A policy of theirs in our words.

    Attributes:
        path: The file of its tensors.
        policy: The policy, but for what normalises its features.
        widths: Name -> numbers a step among the inputs of the network, in their order.
        network_name: Our name of a tensor of the network -> theirs.
        eyes: Camera -> what the names of its encoder's tensors begin with.
        eye_name: Our name of a tensor of such an encoder -> theirs.

    Raises:
        DataError: Too many features, or a name that no feature can have.
    """

    path: Path
    policy: PolicySpec
    widths: Mapping[str, int]
    network_name: Callable[[str], str]
    eyes: Mapping[str, str] = field(default_factory=dict)
    eye_name: Callable[[str], str] = core_name

    def __post_init__(self) -> None:
        shapes = self.policy.observations
        taken = sorted(_TAKEN.intersection(shapes))
        if taken or len(self.cameras) > _CAMERAS or len(shapes) > MAX_FEATURES:
            problem = f"names {len(shapes)} with {len(self.cameras)} cameras, and {taken} among them"
            expected = f"expected at most {MAX_FEATURES} with {_CAMERAS} cameras, and names that are not taken"
            raise DataError(self.path, "observations", f"{problem}, {expected}")

    @property
    def cameras(self) -> list[str]:
        """The images, by name."""
        return sorted(self.policy.cameras)

    def spec(self, affine: Mapping[str, Affine]) -> PolicySpec:
        """The policy, with what normalises its features, the action among them."""
        scalings = {name: affine[name].scaling(name in self.cameras) for name in self.policy.observations}
        return dataclasses.replace(self.policy, scalings=scalings, action_scaling=affine["action"].scaling(False))

    def placed(
        self, tensors: Mapping[str, Tensor], affine: Mapping[str, Affine], origin: str, unused: Collection[str] = ()
    ) -> Checkpoint:
        """The policy with every tensor in its place.

        Raises:
            DataError: A tensor that is missing, surplus, of another shape or not finite.
        """
        left = {name: tensor for name, tensor in tensors.items() if not (name.endswith(_IDLE) and tensor.numel() <= 1)}
        for camera, prefix in self.eyes.items():
            height, width, _ = self.policy.encoded[camera]
            settle_core(self.path, left, prefix, (height, width))
        policy = filled(self.path, self.spec(affine), left, self.their_name, self.order)
        for name, constants in affine.items():
            policy.set_constants(name, constants.scale, constants.offset)
        policy.ready()
        return Checkpoint(policy, {"imported": origin, "unused": sorted(unused)})

    def their_name(self, name: str) -> str | None:
        """Their name for a tensor of ours, or None where they have none."""
        if name.startswith(_NETWORK):
            return self.network_name(name.removeprefix(_NETWORK))
        if not name.startswith(_EYES):
            return None
        eye, _, rest = name.removeprefix(_EYES).partition(".")
        return self.eyes[self.cameras[int(eye)]] + self.eye_name(rest)

    def order(self, name: str, tensor: Tensor) -> Tensor | None:
        """Where our inputs stand among theirs, of a layer that takes the observation, or None of another one."""
        ours = [*self.cameras, *sorted({*self.widths} - {*self.cameras})]
        for end, steps in {"cond_encoder.1.weight": self.policy.history, "cond_obs_emb.weight": 1}.items():
            if name.endswith(end):
                embedding = tensor.shape[1] - steps * sum(self.widths.values())
                return columns(embedding, steps, self.widths, ours)
        return None


def weights(path: Path, tensors: Mapping[str, Tensor], where: str, kinds: Collection[str]) -> dict[str, Tensor]:
    """The weights of the first kind that is there: the average, or else the last ones.

    Raises:
        DataError: There are none.
    """
    for prefix in (f"{where}/{kind}/" for kind in kinds):
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if found:
            return found
    raise DataError(path, where, f"holds neither {' nor '.join(kinds)}, expected the weights of a policy")


def unet(fields: Fields, chain: Chain, scale: bool) -> UNet1D:
    """The U-Net that some fields describe.

    Raises:
        DataError: A field that is missing or out of range.
    """
    fields.must("n_groups", GROUPS, f"whatever is set, the last block of their network has {GROUPS} groups")
    return UNet1D(
        channels=fields.integers("down_dims", MAX_SIZE, 8),
        kernel=fields.integer("kernel_size", 1000),
        groups=GROUPS,
        embedding=fields.integer("diffusion_step_embed_dim", MAX_SIZE),
        conditioning=FiLM(scale),
        level=Steps(chain.schedule),
    )


def unet_name(name: str) -> str:
    """Our name of a tensor of the U-Net as diffusion_policy and robomimic have it."""
    name = name.replace(".conv1.block.", ".blocks.0.block.").replace(".conv2.block.", ".blocks.1.block.")
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv.", name)


def positions(size: tuple[int, int]) -> Tensor:
    """The coordinates `(pixels, 2)`, x first, that they keep of a ResNet's feature map of images of a size."""
    y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in _map_size(size))
    return torch.cartesian_prod(y, x).flip(1).float()


def _map_size(size: tuple[int, int]) -> tuple[int, int]:
    """Of a ResNet: each of its five strides halves, rounding up."""
    return -(-size[0] // 32), -(-size[1] // 32)


def settle_core(path: Path, tensors: dict[str, Tensor], prefix: str, size: tuple[int, int]) -> None:
    """Take out of an encoder what is there twice or changes no plan; the temperature goes into the weights.

    Args:
        path: The file.
        tensors: Its tensors.
        prefix: Before the names of this camera.
        size: Height and width of its images.

    Raises:
        DataError: Copies that differ, coordinates of other pixels, or a temperature that is none.
    """
    for name in [n for n in tensors if n.startswith(f"{prefix}nets.")]:
        part, _, rest = name.removeprefix(f"{prefix}nets.").partition(".")
        twin = {"0": f"{prefix}backbone.{rest}", "1": f"{prefix}pool.{rest}"}.get(part)
        if twin in tensors and not torch.equal(tensors.pop(name), tensors[twin]):
            raise DataError(path, name, f"differs from {twin}, expected the same numbers")
    weight = f"{prefix}pool.nets.weight"
    if weight not in tensors:
        return
    height, width = _map_size(size)
    for name, axes in {"pos_x": [0], "pos_y": [1], "pos_grid": [0, 1]}.items():
        got = tensors.pop(f"{prefix}pool.{name}", None)
        fits = 1 not in (height, width) and (got is None or got.numel() == height * width * len(axes))
        if fits and got is not None:
            fits = torch.allclose(got.float().reshape(-1, len(axes)), positions(size)[:, axes], atol=1e-5)
        if not fits:
            problem = f"are no coordinates of {height} x {width} pixels from -1 to 1, expected them, of 2 x 2 or more"
            raise DataError(path, f"{prefix}pool.{name}", problem)
    tensors.pop(f"{prefix}pool.nets.bias", None)  # an offset that a softmax does not feel
    temperature = tensors.pop(f"{prefix}pool.temperature", torch.ones(1))
    if temperature.numel() != 1 or not 0 < float(temperature) < torch.inf:
        raise DataError(
            path, f"{prefix}pool.temperature", f"got {temperature.flatten().tolist()[:3]}, expected a number above 0"
        )
    tensors[weight] = tensors[weight] / temperature


def crop(fields: Fields, shapes: Collection[tuple[int, ...]], rounded: bool = True) -> tuple[Crop, ...]:
    """The crop in the field `crop_shape`, as run time has it: in the centre.

    Args:
        fields: Where it is.
        shapes: Of the images.
        rounded: Their margin is halved to the even side, ours to the smaller.

    Raises:
        DataError: No two sizes, or an odd margin that would halve otherwise.
    """
    if fields.values.get("crop_shape") is None:
        return ()
    height, width = (*fields.integers("crop_shape", MAX_SIZE, 2), 0)[:2]
    margins = [whole - part for shape in shapes for whole, part in zip(shape, (height, width), strict=False)]
    if rounded and any(margin % 4 == 3 for margin in margins):
        fields.refuse("crop_shape", "margins that halve alike: an odd one of 3, 7, 11, ... pixels does not")
    return (Crop(height=height, width=width),)


__all__ = [
    "DEPTHS",
    "GROUPS",
    "Affine",
    "Outline",
    "core_name",
    "crop",
    "positions",
    "settle_core",
    "unet",
    "unet_name",
    "weights",
]
