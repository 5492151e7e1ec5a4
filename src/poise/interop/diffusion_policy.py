"""Checkpoints of diffusion_policy (Chi et al. 2023, arXiv 2303.04137): `torch.save` of a configuration and tensors."""

from pathlib import Path

import torch
from torch import Tensor

from poise.data.untrusted import DataError
from poise.interop.diffusion_policy_config import IMAGENET, described_by
from poise.interop.fields import Fields
from poise.interop.published import Affine, Outline, weights
from poise.interop.quarantine import Unpickled, unpickled
from poise.nn import NetworkSpec, Transformer
from poise.policies import Checkpoint

_NORMALISER = "normalizer.params_dict."


def import_diffusion_policy(path: str | Path) -> Checkpoint:
    r"""A policy of diffusion_policy as ours, with the same plans for the same noise; it runs under every sampler.

    U-Nets and transformers, of low-dimensional and of image policies. Of the weights the average is taken where there
    is one. Its sampler is the scheduler of the checkpoint, whose last step ends at $\sigma = 0$, ours at 1e-9. Images
    are uint8 `(height, width, channels)` here, where theirs are floats from 0 to 1 with the channels first; crops are
    in the centre, as theirs are at run time. Nothing in the file is executed.

    Args:
        path: The `.ckpt`.

    Raises:
        FileNotFoundError: No such file.
        DataError: A broken or hostile file, a policy or part without counterpart, which it names, or a tensor that is
            missing, surplus or of another shape.
    """
    return from_tree(Path(path), unpickled(path))


def from_tree(path: Path, got: Unpickled) -> Checkpoint:
    """As `import_diffusion_policy`, of a file that is read already."""
    configuration = Fields.of(path, "checkpoint", got.rest).inner("cfg")
    policy = Fields(path, "cfg", configuration.values).inner("policy")
    outline, imagenet = described_by(policy)
    tensors = weights(path, got.tensors, "state_dicts", ("ema_model", "model"))
    affine, unused = _normalisers(outline, tensors)
    for name in outline.cameras if imagenet else ():
        affine[name] = _coloured(path, name, affine[name])
    _masks(path, outline.policy.network, tensors)
    return outline.placed(tensors, affine, "diffusion_policy", unused)


def _normalisers(outline: Outline, tensors: dict[str, Tensor]) -> tuple[dict[str, Affine], set[str]]:
    """The maps of the features that the policy sees and of its action, and the names of the others."""
    taken = {name: tensors.pop(name) for name in [n for n in tensors if n.startswith(_NORMALISER)]}
    seen = {name: shape[-1] for name, shape in outline.policy.observations.items()} | {"action": outline.policy.action}
    affine = {}
    for name, size in seen.items():
        pair = []
        for part in ("scale", "offset"):
            key = f"{_NORMALISER}{name}.{part}"
            value = taken.get(key)
            if value is None or value.ndim != 1 or len(value) not in {1, size} or not torch.isfinite(value).all():
                got = "is missing" if value is None else f"has the shape {tuple(value.shape)}, or is not finite"
                raise DataError(outline.path, key, f"{got}, expected {size} finite numbers")
            pair.append(value.double().expand(size))
        if bool((pair[0] == 0).any()):
            raise DataError(outline.path, f"{_NORMALISER}{name}.scale", "got 0, which nothing undoes")
        # They see pixels from 0 to 1.
        affine[name] = Affine(pair[0] / 255 if name in outline.cameras else pair[0], pair[1])
    return affine, {name.removeprefix(_NORMALISER).split(".")[0] for name in taken} - set(seen)


def _coloured(path: Path, name: str, affine: Affine) -> Affine:
    """What torchvision's normalisation makes of a normalised image: theirs applies it after their own."""
    mean, deviation = (torch.tensor(numbers, dtype=torch.float64) for numbers in IMAGENET)
    if len(affine.scale) != len(mean):
        raise DataError(path, "imagenet_norm", f"got image {name!r} of {len(affine.scale)} channels, expected 3")
    return Affine(affine.scale / deviation, (affine.offset - mean) / deviation)


def _masks(path: Path, network: NetworkSpec, tensors: dict[str, Tensor]) -> None:
    """Take out the masks of a causal transformer, which are ours too."""
    if not isinstance(network, Transformer) or not network.causal:
        return
    for name, earlier in {"model.mask": 0, "model.memory_mask": 1}.items():  # token 0 of the memory is the noise level
        mask = tensors.pop(name, None)
        if mask is None:
            continue
        hidden = torch.ones(mask.shape, dtype=torch.bool).triu(1 + earlier) if mask.ndim == 2 else None
        if hidden is None or not torch.equal(mask.float(), torch.zeros(mask.shape).masked_fill(hidden, -torch.inf)):
            raise DataError(path, name, "is another mask than the causal one, expected it")


__all__ = ["from_tree", "import_diffusion_policy"]
