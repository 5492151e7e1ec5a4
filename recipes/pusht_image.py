"""Push-T from pixels: 96 x 96 images and the position of the agent (Chi et al. 2023, arXiv 2303.04137).

    poise train recipes/pusht_image.py --data pusht_cchi_v7_replay.zarr
    poise evaluate out/pusht_image --recipe recipes/pusht_image.py --episodes 500 --seed 100000

An encoder that two CPU cores can train; on a GPU take the published one: `encoder=Joint()`. An action is the target
position of the agent in pixels of a table of 512 x 512, ten times a second.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise import (
    CNN,
    MLP,
    Crop,
    Episodes,
    Joint,
    PolicySpec,
    Recipe,
    Relative,
    SmallCNN,
    SpatialSoftmax,
    Standard,
    Task,
    TrainingSpec,
    read,
)


def observe(observation: Any) -> dict[str, NDArray]:
    """The environment's observation as features."""
    return {"image": np.asarray(observation["pixels"]), "agent": np.asarray(observation["agent_pos"])}


def demonstrations(path: Path | None) -> Episodes:
    """The demonstrations."""
    if path is None:
        raise ValueError("the Push-T recipe got no data, expected --data pusht_cchi_v7_replay.zarr")
    raw = read(path, ("state", "action", "img"))
    images, state = raw.features["img"].astype(np.uint8), raw.features["state"]
    return Episodes({"image": images, "agent": state[:, :2], "action": raw.features["action"]}, raw.ends)


def with_mirrored(original: Episodes) -> Episodes:
    """Episodes and their mirror images along the diagonal x + y = 512, which leaves the goal as it is."""
    rows = original.features
    points = {name: 512 - rows[name][:, ::-1] for name in ("agent", "action")}
    return original + Episodes({"image": rows["image"].swapaxes(1, 2)[:, ::-1, ::-1], **points}, original.ends)


recipe = Recipe(
    policy=PolicySpec(
        observations={"image": (96, 96, 3), "agent": (2,)},
        action=2,
        space=Relative("agent"),
        history=1,
        encoder=Joint(images=CNN(backbone=SmallCNN((16, 32, 64, 128)), pooling=SpatialSoftmax(64), width=128)),
        augmentations=(Crop(),),
        draws=4,
        network=MLP(width=384, depth=3, condition=256),
        action_scaling=Standard(),
        bound=None,
        temperature=0.5,
    ),
    training=TrainingSpec(minutes=77, steps=100_000, batch=128, ema_maximum=0.999, bfloat16=True),
    task=Task("gym_pusht:gym_pusht/PushT-v0", {"obs_type": "pixels_agent_pos"}, observe, extra="pusht"),
    read=demonstrations,
    enlarge=with_mirrored,
    padded=8,
)
