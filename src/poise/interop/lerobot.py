"""Checkpoints of LeRobot's DiffusionPolicy (Chi et al. 2023, arXiv 2303.04137, as LeRobot 0.3 to 0.6 write it).

Their networks are ours under other names; only the order of the features differs, by which the columns of the
modulations are permuted.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from poise.data import Scaling
from poise.data.untrusted import DataError, inside
from poise.interop.lerobot_config import ACTION, Config, read_config
from poise.interop.lerobot_statistics import PREPROCESSOR, read_processors, within
from poise.interop.tensors import all_placed, columns, filled, read_tensors
from poise.policies import Checkpoint, DiffusionPolicy

WEIGHTS = "model.safetensors"
_NETWORK, _EYES, _TRUNK = "diffusion.network.", "encoder.parts.0.eyes.", "trunk.module."
_LAYERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
_ENDS = {"pool.keypoints.weight": "pool.nets.weight", "project.weight": "out.weight", "project.bias": "out.bias"}


def import_lerobot(path: str | Path, identity: Collection[str] = ()) -> Checkpoint:
    r"""A LeRobot DiffusionPolicy as ours, with the same plans for the same noise; it runs under every sampler.

    Its sampler is LeRobot's scheduler. The last step of theirs ends at $\sigma = 0$, ours at 1e-9. Images are uint8
    `(height, width, 3)` here, where LeRobot takes floats from 0 to 1 with the channels first. Batch norms keep their
    statistics in fine-tuning.

    Args:
        path: The folder `pretrained_model`: `config.json`, `model.safetensors` and, of LeRobot 0.4 and later, the files
            of its processors.
        identity: Names of features that may lack statistics or a mode of normalisation and then stay in the units of
            the data, as LeRobot leaves them without a word.

    Raises:
        FileNotFoundError: No such folder.
        DataError: A file that is missing, broken or hostile, a part without counterpart, a feature without statistics,
            or a tensor that is missing, surplus or of another shape.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder, expected one with config.json and {WEIGHTS}")
    config, weights = read_config(root), inside(root, WEIGHTS, WEIGHTS)
    tensors = {name.replace("._orig_mod.", "."): tensor for name, tensor in read_tensors(weights).items()}
    if (root / PREPROCESSOR).exists():
        statistics = read_processors(root, config)
    elif any(name.startswith("normalize_inputs.") for name in tensors):
        statistics = within(weights, config, tensors)
    else:
        raise DataError(
            root, PREPROCESSOR, f"does not exist, expected it, or statistics in the {WEIGHTS} of LeRobot 0.3"
        )
    seen = {**config.inputs, ACTION: config.action}
    affine = {name: statistics.affine(name, feature, identity) for name, feature in seen.items()}
    policy = _placed(weights, config, tensors, {name: constants.scaling for name, constants in affine.items()})
    for name, (scale, offset, _) in affine.items():
        policy.set_constants(name, scale, offset)
    policy.ready()
    return Checkpoint(policy, {"imported": "LeRobot DiffusionPolicy", "unused": list(config.unused)})


def _placed(path: Path, config: Config, tensors: dict[str, Tensor], scalings: Mapping[str, Scaling]) -> DiffusionPolicy:
    """The policy that is described, with every tensor placed; those that are, are taken out."""
    order = config_columns(config)

    def place(name: str) -> tuple[str, Tensor] | None:
        theirs = their_name(name, config)
        if theirs not in tensors:
            return None
        tensor = tensors.pop(theirs)
        fits = name.endswith("cond_encoder.1.weight") and tensor.ndim == 2 and tensor.shape[1] == len(order)
        return theirs, tensor[:, order] if fits else tensor

    policy = filled(path, config.spec(scalings), place)
    _idle(path, policy, tensors)
    all_placed(path, tensors)
    return policy


def their_name(name: str, config: Config) -> str | None:
    """LeRobot's name for a tensor of ours, or None where it has none."""
    if name.startswith(_NETWORK):
        return f"diffusion.unet.{name.removeprefix(_NETWORK)}"
    if not name.startswith(_EYES):
        return None
    eye, _, rest = name.removeprefix(_EYES).partition(".")
    camera = f"{config.cameras.index(sorted(config.cameras)[int(eye)])}." if config.separate else ""
    if rest.startswith(_TRUNK):
        layer, _, inner = rest.removeprefix(_TRUNK).partition(".")
        return f"diffusion.rgb_encoder.{camera}backbone.{_LAYERS[layer]}.{inner}"
    return f"diffusion.rgb_encoder.{camera}{_ENDS[rest]}"


def config_columns(config: Config) -> Tensor:
    """Where our inputs of the modulation stand in theirs: ours are images, then numbers, either by name."""
    ours = [*sorted(config.cameras), *sorted(set(config.widths) - set(config.cameras))]
    fields = config.fields
    embedding, history = fields.integer("diffusion_step_embed_dim", 65_536), fields.integer("n_obs_steps", 1000)
    return columns(embedding, history, config.widths, ours)


def positions(height: int, width: int) -> Tensor:
    """The coordinates `(height * width, 2)` that LeRobot keeps of the pixels of a feature map, x first."""
    y, x = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (height, width))
    grid = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid[1].flatten(), grid[0].flatten()], 1).float()


def map_size(policy: DiffusionPolicy) -> tuple[int, int]:
    """Height and width of the feature maps of a ResNet: each of its five strides halves, rounding up."""
    height, width, _ = policy.spec.encoded[sorted(policy.spec.cameras)[0]]
    return -(-height // 32), -(-width // 32)


def _idle(path: Path, policy: DiffusionPolicy, tensors: dict[str, Tensor]) -> None:
    """Take out what changes no plan: offsets that a softmax does not feel, counters, and coordinates that are ours."""
    for name in [n for n in tensors if n.startswith("diffusion.rgb_encoder.")]:
        end = name.rpartition("backbone.")[2] if "backbone." in name else name.partition("pool.")[2]
        if end == "pos_grid":
            expected = positions(*map_size(policy))
            got = tensors[name]
            if (
                got.shape != expected.shape
                or not torch.allclose(got.float(), expected, atol=1e-5)
                or 1 in map_size(policy)
            ):
                raise DataError(
                    path, name, f"are no coordinates of {map_size(policy)} pixels from -1 to 1, expected them"
                )
        elif end != "nets.bias" and not end.endswith(".num_batches_tracked"):
            continue
        del tensors[name]


__all__ = ["WEIGHTS", "config_columns", "import_lerobot", "map_size", "positions", "their_name"]
