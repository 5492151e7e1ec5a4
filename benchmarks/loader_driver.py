"""The peers' side of `loader.py`: runs with the peers' Python, records with LeRobot's writer and times its loader.

Every line of standard input is the name of a row and a number of workers, every answer a line of JSON: samples a
second. The first line says what was loaded. Beside each dataset lies an `.npz` of what was recorded, and of the items
of some indices as LeRobot's dataset gives them.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 96  # px
CHECKED = 40  # items whose windows are compared


def moving(draw: np.random.Generator, steps: int, state: Any) -> Any:
    """A block that moves over a textured ground, `(steps, SIZE, SIZE, 3)`."""
    ground = np.kron(draw.integers(60, 200, (12, 12, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    frames = np.repeat(ground[None], steps, 0)
    for frame, (x, y) in zip(frames, np.clip(40 + 10 * state, 0, SIZE - 16).astype(int), strict=True):
        frame[y : y + 16, x : x + 16] = (220, 40, 40)
    return frames


def record(kit: Any, root: Path, episodes: int, steps: int, video: bool) -> Any:
    """Record trajectories, with or without a film of them, and open them with the diffusion policy's windows."""
    dataset_class = importlib.import_module("lerobot.datasets.lerobot_dataset").LeRobotDataset
    vector = {"dtype": "float32", "names": None}
    features: dict[str, Any] = {
        "observation.state": {**vector, "shape": (kit.STATE_DIM,)},
        "observation.environment_state": {**vector, "shape": (kit.ENV_DIM,)},
        "action": {**vector, "shape": (kit.ACTION_DIM,)},
    }
    if video:
        image = {"dtype": "video", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]}
        features["observation.image"] = image
    fps, draw, rows = 10, np.random.default_rng(0), {name: [] for name in features}
    dataset = dataset_class.create("local/peers", fps=fps, features=features, root=root, use_videos=video)
    for _ in range(episodes):
        walk = (np.cumsum(draw.normal(size=(steps + 1, kit.STATE_DIM)), axis=0) / 20).astype(np.float32)
        some = {"observation.state": walk[:-1], "action": walk[1:]}
        some["observation.environment_state"] = draw.normal(size=(steps, kit.ENV_DIM)).astype(np.float32)
        if video:
            some["observation.image"] = moving(draw, steps, walk[:-1])
        for i in range(steps):
            dataset.add_frame({**{name: some[name][i] for name in features}, "task": "push"})
        dataset.save_episode(**({"parallel_encoding": False} if video else {}))
        for name, values in some.items():
            rows[name].append(values)
    dataset.finalize()
    observed, planned = range(1 - kit.N_OBS, 1), range(1 - kit.N_OBS, 1 - kit.N_OBS + kit.HORIZON)
    deltas = {name: [i / fps for i in (planned if name == "action" else observed)] for name in features}
    opened = dataset_class("local/peers", root=root, delta_timestamps=deltas, video_backend="pyav")
    items, chosen = {}, np.linspace(0, episodes * steps - 1, CHECKED).astype(int)
    for name in ("observation.state", "observation.environment_state", "action", "action_is_pad"):
        items[f"item/{name}"] = np.stack([opened[int(i)][name].numpy() for i in chosen])
    whole = {name: np.concatenate(values) for name, values in rows.items()}
    np.savez(root.with_suffix(".npz"), ends=steps * np.arange(1, episodes + 1), chosen=chosen, **whole, **items)
    return opened


def main() -> None:
    """Record, then answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kit", type=Path, required=True, help="folder with the peers' scripts")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)  # what the libraries print goes to standard error
    os.dup2(2, 1)
    sys.path.insert(0, str(arguments.kit))
    kit = importlib.import_module("bench_common")
    loader = importlib.import_module("lerobot_loader")
    kit.set_threads(arguments.threads)
    rows = {
        "rows": (record(kit, arguments.folder / "rows", 100, 125, video=False), {"blocks": 8, "batches_per_block": 10}),
        "images": (
            record(kit, arguments.folder / "images", 20, 100, video=True),
            {"blocks": 3, "batches_per_block": 2},
        ),
    }
    print(json.dumps(kit.environment(("lerobot", "datasets", "av"))["versions"]), file=answers)
    for line in sys.stdin:
        name, workers = line.split()
        dataset, blocks = rows[name]
        found = loader.bench(dataset, workers=int(workers), batch_size=64, **blocks)
        print(json.dumps(found["samples_per_s"]), file=answers)


if __name__ == "__main__":
    main()
