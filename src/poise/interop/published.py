"""What the importers of diffusion_policy and robomimic share: how a policy is described, and its tensors named.

Both have the U-Net of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137) and the image encoder of robomimic
(Mandlekar et al. 2021, arXiv 2108.03298). They are ours under other names; only the order of the features differs.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from poise.data import Crop, Limits, Pixels, Scaling, Unscaled
from poise.data.untrusted import MAX_FEATURES, DataError
from poise.interop.chain import Chain
from poise.interop.fields import Fields, described
from poise.interop.lerobot import positions
from poise.interop.tensors import all_placed, columns, filled
from poise.nn import EncoderSpec, NetworkSpec
from poise.policies import Checkpoint, PolicySpec

GROUPS = 8  # of the last block of their U-Net, whatever is set
SIZE, EYES = 65_536, "encoder.parts.0.eyes."
_CAMERAS, _TAKEN = 64, {"action", "", *dir(nn.ModuleDict())}  # names that no part of a module can have
_NETWORK, _TRUNK = "diffusion.network.", "trunk.module."
_LAYERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
_ENDS = {"pool.keypoints.weight": "pool.nets.weight", "project.weight": "nets.3.weight", "project.bias": "nets.3.bias"}


@dataclass(frozen=True)
class Affine:
    """A normalisation, y = scale x + offset, with a number for each of a feature, or for each channel of an image."""

    scale: Tensor
    offset: Tensor

    def scaling(self, image: bool) -> Scaling:
        """The rule that it stands for, for training further."""
        if image:
            scale = 255 * self.scale
            return Pixels(tuple((-self.offset / scale).tolist()), tuple((1 / scale).tolist()))
        same = bool((self.scale == 1).all()) and not bool(self.offset.any())
        return Unscaled() if same else Limits()


@dataclass(frozen=True)
class Outline:
    """A policy of theirs in our words.

    Attributes:
        path: Its file.
        observations: Name -> shape, images with the channels last.
        widths: Name -> numbers a step among the inputs of the network, in their order.
        action: Numbers an action.
        history: Observation steps.
        horizon: Action steps that the network denoises.
        lead: How many of them come before the current one.
        execute: Action steps that are run.
        encoder: The encoder.
        network: The network.
        chain: Its noise.
        augmentations: Crops.
        network_name: Our name of a tensor of the network -> theirs.
        eye_name: Camera, and our name of a tensor of its encoder -> theirs.
    """

    path: Path
    observations: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, int]
    action: int
    history: int
    horizon: int
    lead: int
    execute: int
    encoder: EncoderSpec
    network: NetworkSpec
    chain: Chain
    network_name: Callable[[str], str]
    augmentations: tuple[Crop, ...] = ()
    eye_name: Callable[[str, str], str] = lambda camera, name: f"{camera}.{name}"

    @property
    def cameras(self) -> list[str]:
        """The images, by name."""
        return sorted(name for name, shape in self.observations.items() if len(shape) == 3)

    def spec(self, affine: Mapping[str, Affine]) -> PolicySpec:
        """The policy, with what normalises its features, the action among them.

        Raises:
            DataError: Parts that do not fit each other, too many features, or a name that no feature can have.
        """
        names = sorted(_TAKEN.intersection(self.observations))
        if names or len(self.cameras) > _CAMERAS or len(self.observations) > MAX_FEATURES:
            problem = f"names {len(self.observations)} with {len(self.cameras)} cameras, and {names} among them"
            expected = f"expected at most {MAX_FEATURES} with {_CAMERAS} cameras, and names that are not taken"
            raise DataError(self.path, "observations", f"{problem}, {expected}")
        with described(self.path, "configuration"):
            return PolicySpec(
                observations=self.observations,
                action=self.action,
                history=self.history,
                horizon=self.horizon,
                lead=self.lead,
                execute=min(self.execute, self.horizon - self.lead),
                encoder=self.encoder,
                network=self.network,
                schedule=self.chain.schedule,
                prediction=self.chain.prediction,
                augmentations=self.augmentations,
                scalings={name: affine[name].scaling(name in self.cameras) for name in self.observations},
                action_scaling=affine["action"].scaling(False),
                bound=self.chain.bound,
                sampler=self.chain.sampler,
                grid=self.chain.grid,
                begin=self.chain.begin,
                evaluations=self.chain.evaluations,
            )

    def placed(self, tensors: dict[str, Tensor], affine: Mapping[str, Affine], origin: str) -> Checkpoint:
        """The policy with every tensor in its place.

        Raises:
            DataError: A tensor that is missing, surplus, of another shape or not finite.
        """
        numbers = sorted(set(self.observations) - set(self.cameras))

        def place(name: str) -> tuple[str, Tensor] | None:
            theirs = self._their_name(name)
            if theirs not in tensors:
                return None
            tensor = tensors.pop(theirs)
            order = self._order(name, tensor, [*self.cameras, *numbers])
            return theirs, tensor if order is None else tensor[:, order]

        policy = filled(self.path, self.spec(affine), place)
        all_placed(self.path, tensors)
        for name, constants in affine.items():
            policy.set_constants(name, constants.scale, constants.offset)
        policy.ready()
        return Checkpoint(policy, {"imported": origin, "unused": []})

    def _their_name(self, name: str) -> str:
        if name.startswith(_NETWORK):
            return self.network_name(name.removeprefix(_NETWORK))
        eye, _, rest = name.removeprefix(EYES).partition(".")
        return self.eye_name(self.cameras[int(eye)], rest)

    def _order(self, name: str, tensor: Tensor, ours: list[str]) -> Tensor | None:
        """Where our inputs stand among theirs, of the layers that take the observation."""
        size = sum(self.widths.values())
        if tensor.ndim != 2 or not name.endswith(("cond_encoder.1.weight", "cond_obs_emb.weight")):
            return None
        tokens, history = name.endswith("cond_obs_emb.weight"), self.history
        inputs = size if tokens else tensor.shape[1] - history * size
        if inputs < 0 or (tokens and tensor.shape[1] != size):
            return None
        return columns(0, 1, self.widths, ours) if tokens else columns(inputs, history, self.widths, ours)


def unet_name(name: str) -> str:
    """Our name of a tensor of the U-Net as theirs."""
    name = name.replace(".conv1.block.", ".blocks.0.block.").replace(".conv2.block.", ".blocks.1.block.")
    return re.sub(r"^((?:down|up)_modules\.\d+\.2)\.", r"\1.conv.", name)


def core_name(name: str) -> str:
    """Our name of a tensor of a camera's encoder as robomimic's VisualCore has it."""
    if not name.startswith(_TRUNK):
        return _ENDS[name]
    layer, _, rest = name.removeprefix(_TRUNK).partition(".")
    return f"backbone.nets.{_LAYERS[layer]}.{rest}"


def settle_core(path: Path, tensors: dict[str, Tensor], prefix: str, size: tuple[int, int]) -> None:
    """Take out of a VisualCore what is there twice or changes no plan; the temperature goes into the weights.

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
    height, width = (-(-n // 32) for n in size)
    for axis, name in enumerate(("pos_x", "pos_y")):
        got = tensors.pop(f"{prefix}pool.{name}", None)
        fits = 1 not in (height, width) and (got is None or got.numel() == height * width)
        if not fits or (
            got is not None and not torch.allclose(got.flatten(), positions(height, width)[:, axis], atol=1e-5)
        ):
            problem = f"are no coordinates from -1 to 1 of {height} x {width} pixels, expected them, of 2 x 2 or more"
            raise DataError(path, f"{prefix}pool.{name}", problem)
    tensors.pop(f"{prefix}pool.nets.bias", None)  # an offset that a softmax does not feel
    temperature, weight = tensors.pop(f"{prefix}pool.temperature", torch.ones(1)), f"{prefix}pool.nets.weight"
    if temperature.numel() != 1 or not 0 < float(temperature) < torch.inf:
        raise DataError(path, f"{prefix}pool.temperature", f"got {temperature.tolist()[:3]}, expected a number above 0")
    if weight in tensors:
        tensors[weight] = tensors[weight] / temperature


def settle(tensors: dict[str, Tensor]) -> None:
    """Take out what is no part of a network: counters of batches, and parameters without a number."""
    for name in [n for n in tensors if n.endswith((".num_batches_tracked", "_dummy_variable"))]:
        if tensors[name].numel() <= 1:
            del tensors[name]


def crop(fields: Fields, shapes: Collection[tuple[int, ...]], rounded: bool) -> tuple[Crop, ...]:
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
    height, width = (*fields.integers("crop_shape", SIZE, 2), 0)[:2]
    margins = [whole - part for shape in shapes for whole, part in zip(shape, (height, width), strict=False)]
    if rounded and any(margin % 4 == 3 for margin in margins):
        fields.refuse("crop_shape", "margins that halve alike: an odd one of 3, 7, 11, ... pixels does not")
    return (Crop(height=height, width=width),)


__all__ = [
    "EYES",
    "GROUPS",
    "SIZE",
    "Affine",
    "Outline",
    "core_name",
    "crop",
    "settle",
    "settle_core",
    "unet_name",
]
