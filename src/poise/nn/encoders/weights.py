"""Published weights of backbones, read by their names into the encoders of a policy."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from poise.nn.encoders.backbones import Trunk

_CLASSIFIER = ("fc.weight", "fc.bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_backbone(encoder: nn.Module, weights: Mapping[str, Tensor] | str | Path) -> None:
    """Read published weights into every backbone of an encoder, in place.

    A ResNet takes the tensors of torchvision and of timm: they have the same names. Their classifier `fc` is left out,
    and so are the running statistics of batch norms, unless the backbone has a place for them (`FrozenBatchNorm`):
    group norms take the factors and offsets of batch norms alone, and want fine-tuning.

    Args:
        encoder: A built encoder, or any module that holds some, such as a policy.
        weights: Tensors by name, or a safetensors file of them.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No backbone in the encoder, a file of another format, or tensors that are missing, surplus, or of
            another shape; all are named, and nothing is loaded.
    """
    trunks = [module for module in encoder.modules() if isinstance(module, Trunk)]
    if not trunks:
        raise ValueError(
            "load_backbone got an encoder without a backbone, expected one with a CNN: see CNN(backbone=...)"
        )
    tensors = _read(weights) if isinstance(weights, str | Path) else dict(weights)
    chosen = [_fitting(trunk.module, tensors) for trunk in trunks]
    for trunk, own in zip(trunks, chosen, strict=True):
        trunk.module.load_state_dict(own)


def _read(path: str | Path) -> dict[str, Tensor]:
    if Path(path).suffix != ".safetensors":
        raise ValueError(
            f"load_backbone got the file {path}, expected .safetensors: reading other formats may execute code; "
            "convert it with safetensors.torch.save_file"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path} does not exist, expected a safetensors file of weights: write one by "
            "safetensors.torch.save_file(timm_weights(name), path)"
        )
    return load_file(path)


def _fitting(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the module wants."""
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(tensors))
    surplus = sorted(
        name
        for name in set(tensors) - set(wanted)
        if name not in _CLASSIFIER and name.rpartition(".")[2] not in _STATISTICS
    )
    shapes = {name: (tuple(tensors[name].shape), tuple(wanted[name].shape)) for name in set(wanted) & set(tensors)}
    other = {name: f"{got}, expected {shape}" for name, (got, shape) in sorted(shapes.items()) if got != shape}
    if missing or surplus or other:
        raise ValueError(
            f"load_backbone got weights where {missing} are missing, {surplus} are surplus and the shapes {other} "
            "differ, expected exactly the tensors of the backbone: these are the weights of another one"
        )
    return {name: tensors[name] for name in wanted}


__all__ = ["load_backbone"]
