import os
import signal
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
torch.set_num_threads(1)

PUSHT = Path(os.environ.get("POISE_PUSHT", Path(__file__).parents[2] / "shared/data/pusht/pusht_cchi_v7_replay.zarr"))


@pytest.fixture
def pusht_path() -> Path:
    if not PUSHT.exists():
        pytest.skip(f"the Push-T demonstrations are not at {PUSHT}: set POISE_PUSHT to their .zarr")
    return PUSHT


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Ctrl-C means what it does at a terminal, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
