"""Broken and hostile files of every format, by fixed seeds, and the process that reads them.

Run as a program, it reads the files that a list names, one after the other, and prints a line of JSON before and after
each; whoever reads these lines sees which file it hung or died of.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from poise.data import DataError, Episodes, Facts, Role, open_dataset, read

LENGTHS = (4, 3)
IMAGE = "observation.images.top"
ESCAPE = "../../outside"


class Case(NamedTuple):
    """One file.

    Attributes:
        format: Of the file it was made from.
        kind: What was done to it.
        path: Where it is.
        sure: It cannot be read; otherwise, what was changed may be something that no checksum covers.
    """

    format: str
    kind: str
    path: str
    sure: bool


class Poison:
    """Runs a program when it is unpickled in the usual way."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


# --- whole files ------------------------------------------------------------------------------------------------------


def episodes() -> Episodes:
    random, steps = np.random.default_rng(0), sum(LENGTHS)
    arrays = {
        "action": random.normal(size=(steps, 2)).astype("f4"),
        "observation.state": random.normal(size=(steps, 3)),
        IMAGE: random.integers(0, 256, (steps, 4, 5, 3)).astype("u1"),
    }
    roles = {"action": Role.ACTION, "observation.state": Role.OBSERVATION, IMAGE: Role.OBSERVATION}
    return Episodes(arrays, np.cumsum(LENGTHS), ("push", "öffne"), Facts(10.0, "pusher", roles))


def wholes(folder: Path) -> dict[str, Path]:
    """A small dataset of every format, and checkpoints."""
    from poise.data import known_formats, write

    known, data = known_formats(), episodes()
    paths = {
        "npz": folder / "a.npz",
        "zarr": folder / "a.zarr",
        "zarr zip": folder / "a.zarr.zip",
        "robomimic": folder / "a.hdf5",
        "recording": folder / "a.recording",
        "lerobot": folder / "lerobot",
    }
    for name, path in paths.items():
        write(path, data, known[name.split()[0]])
    paths |= {"robomimic chunked": _chunked(paths["robomimic"]), "minari": _minari(folder / "pairs-v0")}
    paths |= {"lerobot-v2": _version_2(folder / "old", data), "lerobot-video": _film(folder / "film")}
    return {**paths, **_checkpoints(folder)}


def _chunked(plain: Path) -> Path:
    """The same by the newest layout of HDF5: other indices, links and headers."""
    import h5py

    path = plain.with_name("b.hdf5")
    with h5py.File(plain) as old, h5py.File(path, "w", libver="latest") as new:

        def copy(name: str, one: Any) -> None:
            if isinstance(one, h5py.Dataset):
                squeezed = {"compression": "gzip", "shuffle": True, "fletcher32": True} if one.ndim else {}
                new.create_dataset(name, data=one[()], **squeezed)
            else:
                new.require_group(name)
            new[name].attrs.update(one.attrs)

        old.visititems(copy)
    return path


def _minari(folder: Path) -> Path:
    import h5py

    box = {"type": "Box", "dtype": "float64", "shape": [2], "low": [-1, -1], "high": [1, 1]}
    space = {"type": "Dict", "subspaces": {"achieved": box, "desired_goal": box}}
    meta = {"total_episodes": 2, "total_steps": sum(LENGTHS), "data_format": "hdf5", "env_spec": '{"id": "Pairs-v0"}'}
    meta |= {"observation_space": json.dumps(space), "action_space": json.dumps(box)}
    (folder / "data").mkdir(parents=True)
    (folder / "data/metadata.json").write_text(json.dumps(meta))
    with h5py.File(folder / "data/main_data.hdf5", "w") as file:
        for number, steps in enumerate(LENGTHS):
            group = file.create_group(f"episode_{number}")
            group.attrs["total_steps"] = steps
            for key in ("achieved", "desired_goal"):
                group[f"observations/{key}"] = np.random.default_rng(number).normal(size=(steps + 1, 2))
            group["actions"], group["rewards"] = np.ones((steps, 2)), np.arange(steps) * 1.0
            group["terminations"] = group["truncations"] = np.zeros(steps, bool)
    return folder


def _version_2(root: Path, data: Episodes) -> Path:
    """LeRobotDataset v2.1, without images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = {"action": 2, "observation.state": 3}
    features = {n: {"dtype": data.features[n].dtype.name, "shape": [w], "names": None} for n, w in names.items()}
    info = {"codebase_version": "v2.1", "robot_type": "pusher", "total_episodes": 2, "total_frames": sum(LENGTHS)}
    info |= {"fps": 10, "chunks_size": 1000, "features": features, "splits": {"train": "0:1"}, "video_path": None}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    (root / "meta/tasks.jsonl").write_text('{"task_index": 0, "task": "push"}\n')
    lines = [{"episode_index": k, "tasks": ["push"], "length": n} for k, n in enumerate(LENGTHS)]
    (root / "meta/episodes.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for k, (first, end) in enumerate(zip(data.starts, data.ends, strict=True)):
        steps = np.arange(end - first)
        columns = {n: pa.array(data.features[n][first:end].tolist(), pa.list_(_arrow(pa, n))) for n in names}
        columns |= {"timestamp": (steps / 10).astype("f4"), "frame_index": steps, "index": first + steps}
        columns |= {"episode_index": np.full(len(steps), k), "task_index": np.zeros(len(steps), int)}
        pq.write_table(pa.table(columns), root / f"data/chunk-000/episode_{k:06d}.parquet")
    return root


def _arrow(arrow: Any, name: str) -> Any:
    return arrow.float32() if name == "action" else arrow.float64()


def _film(root: Path) -> Path:
    from poise.data import known_formats
    from poise.data.flat import in_memory
    from poise.data.reading import convert

    data = episodes()
    frames = np.zeros((data.steps, 64, 64, 3), np.uint8) + np.arange(data.steps, dtype=np.uint8)[:, None, None, None]
    films = Episodes({"action": data.features["action"], IMAGE: frames}, data.ends, (), Facts(10.0))
    convert(in_memory(films), root, known_formats()["lerobot-video"])
    return root


def _checkpoints(folder: Path) -> dict[str, Path]:
    import torch

    from poise.interop.lerobot_export import export_lerobot
    from poise.nn import UNet1D
    from poise.nn.embeddings import Steps
    from poise.policies import DiffusionPolicy, PolicySpec
    from poise.predictions import Epsilon
    from poise.sampling import DDIM, Trailing
    from poise.schedules import Tabulated

    chain = Tabulated.squared_cosine(100)
    network = UNet1D((8, 8), embedding=8, level=Steps(chain))
    shapes = {"observation.state": (3,), "observation.environment_state": (2,)}
    spec = PolicySpec(shapes, 2, lead=1, execute=4, network=network, schedule=chain)
    spec = _replaced(spec, prediction=Epsilon(), sampler=DDIM(bound=1.0), grid=Trailing(100, first=1), begin=0.91)
    torch.manual_seed(0)
    policy = DiffusionPolicy(spec)
    for name, (width,) in {**shapes, "action": (2,)}.items():
        policy.set_constants(name, torch.ones(width), torch.zeros(width))
    (folder / "policy").mkdir()
    policy.save(folder / "policy")
    export_lerobot(policy, folder / "exported")
    torch.save({"state_dicts": {"model": {"w": torch.randn(3, 4)}}, "cfg": {"lr": 1e-4}}, folder / "a.ckpt")
    return {"policy": folder / "policy", "lerobot policy": folder / "exported", "pickle": folder / "a.ckpt"}


def _replaced(spec: Any, **changes: Any) -> Any:
    import dataclasses

    return dataclasses.replace(spec, **changes)


# --- reading ----------------------------------------------------------------------------------------------------------


def taken(format: str, path: Path) -> Any:
    """What the reader of a format makes of a path, as something that can be compared."""
    if format == "policy":
        from poise.policies import load_checkpoint

        return sorted(load_checkpoint(path).policy.state_dict())
    if format == "lerobot policy":
        from poise.interop.lerobot import import_lerobot

        return sorted(import_lerobot(path).policy.state_dict())
    if format == "pickle":
        from poise.interop.quarantine import unpickled

        return {name: list(tensor.shape) for name, tensor in unpickled(path).tensors.items()}
    with open_dataset(path) as source:
        list(source.findings())
    found = read(path)
    return {name: [array.dtype.str, *array.shape] for name, array in found.features.items()}


def outcome(case: Case) -> dict[str, Any]:
    """What became of a file, how long it took and how much memory."""
    began = _seconds()
    try:
        result = {"error": None, "found": taken(case.format, Path(case.path))}
    except DataError as error:
        named = str(error).startswith(f"{error.path}: {error.field}: ") and bool(error.field)
        inside = Path(case.path) == error.path or Path(case.path) in error.path.parents
        result = {"error": "DataError", "said": str(error)[:500], "named": named and inside}
    except FileNotFoundError as error:  # documented of checkpoints
        named = case.format == "policy" and str(error).startswith(f"{case.path}/policy.safetensors does not exist")
        result = {"error": "FileNotFoundError", "said": str(error)[:500], "named": named}
    except BaseException as error:  # a worker must tell whatever came
        result = {"error": type(error).__name__, "said": str(error)[:500], "named": False}
    return {**result, "seconds": _seconds() - began, "memory": _peak(), "others": _peak_of_others()}


def _seconds() -> float:
    """Of the processor, in this process and those that it waited for: others on the machine do not count."""
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in uses)


def _peak() -> int:
    """Bytes, at most so far; the system's other count includes the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _peak_of_others() -> int:
    """Bytes, at most so far in a process that was started, but not less than this one had then."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def work(list_file: str) -> None:
    """Read the whole files of a list, which loads what readers need, and then the others."""
    plan = json.loads(Path(list_file).read_text())
    for format, path in plan["wholes"].items():
        expected = taken(format, Path(path))
        print(json.dumps({"whole": format, "found": expected, "memory": _peak()}), flush=True)
    for number, case in enumerate(plan["cases"]):
        print(json.dumps({"begins": number}), flush=True)
        print(json.dumps({"ends": number, **outcome(Case(*case))}), flush=True)


if __name__ == "__main__":
    work(sys.argv[1])
