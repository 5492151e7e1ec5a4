"""The two kinds of features: images, whose shape is `(height, width, channels)`, and low-dimensional ones."""

from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]


def images_of(shapes: Shapes) -> dict[str, tuple[int, int, int]]:
    """The images, in the order of their names."""
    return {name: (shape[0], shape[1], shape[2]) for name, shape in sorted(shapes.items()) if len(shape) == 3}


def states_of(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The low-dimensional features, in the order of their names."""
    return {name: tuple(shape) for name, shape in sorted(shapes.items()) if len(shape) != 3}


def only_images(encoder: str, shapes: Shapes) -> dict[str, tuple[int, int, int]]:
    """The features, which must all be images.

    Raises:
        ValueError: A low-dimensional feature, or none at all.
    """
    others = states_of(shapes)
    if others or not shapes:
        raise ValueError(
            f"{encoder} got the low-dimensional features {others}, expected images (height, width, channels) and "
            "nothing else: Joint and Fusion take both kinds, Vector takes low-dimensional ones"
        )
    return images_of(shapes)


def only_states(encoder: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The features, which must all be low-dimensional.

    Raises:
        ValueError: An image, or no feature at all.
    """
    others = images_of(shapes)
    if others or not shapes:
        raise ValueError(
            f"{encoder} got the images {others}, expected low-dimensional features and nothing else: "
            "Joint and Fusion take both kinds, CNN and ImageTransformer take images"
        )
    return states_of(shapes)


def common_channels(encoder: str, images: Mapping[str, tuple[int, int, int]], remedy: str) -> int:
    """The number of channels that all images have.

    Raises:
        ValueError: Images of different numbers of channels.
    """
    channels = {name: shape[2] for name, shape in images.items()}
    if len(set(channels.values())) > 1:
        raise ValueError(f"{encoder} got images of {channels} channels, expected one number for all: {remedy}")
    return next(iter(channels.values()))


__all__ = ["Shapes", "common_channels", "images_of", "only_images", "only_states", "states_of"]
