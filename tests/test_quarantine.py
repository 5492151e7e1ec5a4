"""Pickled checkpoints are read without running what is in them."""

import os
import zipfile

import pytest
import torch

from poise.data import DataError
from poise.interop.quarantine import unpickled


class Hostile:
    """Runs a program when it is unpickled in the usual way."""

    def __init__(self, canary) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_tensors_arrive_bit_by_bit(tmp_path):
    w = torch.randn(4, 6)
    tensors = {
        "w": w,
        "transposed": w.t(),
        "part": w[1:3, 2:],
        "parameter": torch.nn.Parameter(w),
        "scalar": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "double": w.double(),
        "half": w.half(),
        "empty": torch.zeros(0, 3),
    }
    torch.save({"state_dicts": {"model": tensors}, "bf16": w.bfloat16()}, tmp_path / "a.ckpt")
    found = unpickled(tmp_path / "a.ckpt").tensors
    for name, value in tensors.items():
        got = found[f"state_dicts/model/{name}"]
        assert got.dtype == value.dtype
        assert torch.equal(got, value)
    assert torch.equal(found["bf16"], w.bfloat16().float())


def test_the_rest_is_json_and_stand_ins_have_names(tmp_path):
    canary = tmp_path / "canary"
    config = {"lr": 1e-4, "dims": (256, 512), "name": "unet", "bad": Hostile(canary), "nothing": None}
    torch.save({"cfg": config, "more": [1, {"x": True}]}, tmp_path / "a.ckpt")
    rest = unpickled(tmp_path / "a.ckpt").rest
    assert rest == {
        "cfg": {"lr": 1e-4, "dims": [256, 512], "name": "unet", "bad": {"stand-in": "posix.system"}, "nothing": None},
        "more": [1, {"x": True}],
    }
    assert not canary.exists()
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert canary.exists(), "the file is hostile indeed"


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for one in old.infolist():
            for name, data in change(one.filename, old.read(one)):
                new.writestr(name, data)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda n, d: [(n, d), ("x/constants.pkl", b"")] if "data.pkl" in n else [(n, d)], "archive", "TorchScript"),
        (lambda n, d: [(n, d[:-9] if "data.pkl" in n else d)], "data.pkl", "is broken"),
        (lambda n, d: [] if "data.pkl" in n else [(n, d)], "archive", "holds 0 files data.pkl"),
        (lambda n, d: [] if n.endswith("data/0") else [(n, d)], "w", "storage '0' is missing"),
        (lambda n, d: [(n, d[:8] if n.endswith("data/0") else d)], "w", "needs 24 numbers of a storage of 2"),
    ],
    ids=["torchscript", "truncated pickle", "no pickle", "no storage", "short storage"],
)
def test_broken_and_foreign_files_are_explained(tmp_path, change, field, message):
    torch.save({"w": torch.randn(4, 6)}, tmp_path / "a.ckpt")
    rewritten(tmp_path / "a.ckpt", tmp_path / "b.ckpt", change)
    with pytest.raises(DataError, match=message) as caught:
        unpickled(tmp_path / "b.ckpt")
    assert caught.value.field == field


def test_what_is_no_archive_too_large_or_compressed_is_refused(tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "a.ckpt")
    rewritten(tmp_path / "a.ckpt", tmp_path / "z.ckpt", lambda n, d: [(n, d)], zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="has compressed entries"):
        unpickled(tmp_path / "z.ckpt")
    torch.save({"w": torch.zeros(4)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="File is not a zip file, expected a checkpoint of torch.save since"):
        unpickled(tmp_path / "old.ckpt")
    with pytest.raises(DataError, match="bytes, expected at most 10"):
        unpickled(tmp_path / "a.ckpt", most=10)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        unpickled(tmp_path / "none.ckpt")


def test_a_pickle_that_asks_for_memory_breaks_its_reader_only(tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "a.ckpt")
    bomb = b"\x80\x02N" + b"r\xff\xff\xff\x7f" + b"."  # memorises at index 2**31 - 1

    def change(name, data):
        return [(name, bomb if "data.pkl" in name else data)]

    rewritten(tmp_path / "a.ckpt", tmp_path / "b.ckpt", change)
    with pytest.raises(DataError, match="is broken|broke its reader"):
        unpickled(tmp_path / "b.ckpt")
