"""The image backbones of timm: the one file that needs the extra `vision`."""

import difflib
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from poise.extras import extra
from poise.nn.encoders.backbones import Backbone, Trunk


@dataclass(frozen=True)
class Timm(Backbone):
    """The last feature maps of a backbone of PyTorch Image Models, by its name there.

    Batch norms are fixed, with their statistics, factors and offsets, so that a plan does not depend on the other
    robots in the batch; they are meant for published weights. Building never downloads any, as reading a checkpoint
    builds too: see `timm_weights`.

    Attributes:
        name: Such as `resnet18`, `convnext_atto` or `efficientnet_b0`. Transformers for one size of image take only
            that.

    Raises:
        ImportError: On `build`: timm is missing, or cannot be imported.
        ValueError: On `build`: a name that timm does not know, or a model without feature maps.
    """

    name: str

    def build(self, channels: int) -> Trunk:
        """The module for images of so many channels, with random weights."""
        module = _create(self.name, channels, pretrained=False)
        return Trunk(module, module.feature_info.channels()[-1], module.output_fmt == "NHWC")  # pyright: ignore


def timm_weights(name: str) -> dict[str, Tensor]:
    """The published weights of `Timm(name)`, downloaded by timm, for `load_backbone`.

    For a machine without internet write them to a file with `safetensors.torch.save_file`: a feature extractor names
    most of its tensors otherwise than the whole model, so that timm's own files fit few backbones beside residual nets.

    Args:
        name: As in `Timm`; with a tag, such as `resnet18.tv_in1k`, those of that training.

    Raises:
        ImportError: timm is missing, or cannot be imported.
        ValueError: A name that timm does not know, or a model without feature maps.
    """
    return _create(name, 3, pretrained=True).state_dict()


def _create(name: str, channels: int, pretrained: bool):  # noqa: ANN202 (a class of timm)
    timm = _library()
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models())
        hint = f"take one that is close to it, {close}" if close else "timm.list_models('*resnet*') lists what it has"
        raise ValueError(
            f"Timm got the backbone {name!r}, which timm does not know, expected one of its models: {hint}"
        )
    try:
        module = timm.create_model(
            name, pretrained=pretrained, features_only=True, out_indices=(-1,), in_chans=channels
        )
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"Timm got the backbone {name!r}, which gives no feature maps: {error}") from error
    return timm.layers.freeze_batch_norm_2d(module)


def _library() -> ModuleType:
    try:
        with extra("vision", "Timm needs"):
            import timm  # pyright: ignore[reportMissingImports]
            import timm.layers  # pyright: ignore[reportMissingImports]
    except RuntimeError as error:  # from torchvision, which timm imports
        raise ImportError(
            f"timm cannot be imported ({error}): install the torchvision that was built for the installed torch"
        ) from error
    return timm


__all__ = ["Timm", "timm_weights"]
