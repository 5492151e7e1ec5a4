"""Writes and reads datasets by the real LeRobot; run by the interpreter of the peers, never imported by the tests.

lerobot_oracle.py JOBS: a JSON list of jobs, done in order:
["write", IN.npz, ROOT, "image" or "video"]: the arrays of IN.npz, its `lengths` and `tasks`, at 10 frames a second.
["read", ROOT, OUT.npz, DELTAS]: every item with the delta_timestamps of the mapping DELTAS, and the statistics.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SVT_LOG"] = "1"

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def feature(name, rows, pictures):
    shape = rows.shape[1:]
    if rows.dtype == np.uint8 and len(shape) == 3:
        return {"dtype": pictures, "shape": shape, "names": ["height", "width", "channels"]}
    names = [f"{name[0]}{k}" for k in range(shape[0])] if len(shape) == 1 and shape[0] > 1 else None
    return {"dtype": rows.dtype.name, "shape": shape, "names": names}


def write(source, root, pictures):
    data = dict(np.load(source))
    lengths, tasks = data.pop("lengths"), data.pop("tasks")
    features = {name: feature(name, rows, pictures) for name, rows in data.items()}
    dataset = LeRobotDataset.create(
        "local/oracle", fps=10, features=features, root=root, robot_type="pusht", use_videos=pictures == "video"
    )
    row = 0
    for length, task in zip(lengths, tasks, strict=True):
        for _ in range(length):
            frame = {name: rows[row] for name, rows in data.items()}
            if hasattr(dataset, "finalize"):
                dataset.add_frame(frame | {"task": str(task)})
            else:
                dataset.add_frame(frame, task=str(task))
            row += 1
        if hasattr(dataset, "finalize"):
            dataset.save_episode(parallel_encoding=False)
        else:
            dataset.save_episode()
    if hasattr(dataset, "finalize"):
        dataset.finalize()


def read(root, target, deltas):
    dataset = LeRobotDataset("local/oracle", root=root, delta_timestamps=deltas or None, video_backend="pyav")
    items = [dataset[k] for k in range(len(dataset))]
    found = {name: np.stack([np.asarray(item[name]) for item in items]) for name in items[0]}
    stats = {f"stats/{name}/{key}": value for name, one in dataset.meta.stats.items() for key, value in one.items()}
    np.savez(target, **found, **stats)


if __name__ == "__main__":
    import torchvision

    if not hasattr(torchvision.io, "VideoReader"):
        sys.exit("torchvision has no VideoReader, which LeRobot decodes by: put 0.25.0 on POISE_PEERS_PATH")
    for job, *arguments in json.loads(sys.argv[1]):
        {"write": write, "read": read}[job](*arguments)
