"""Pictures of MuJoCo: sizes, renderers that do not disturb each other, and what is said where there is none."""

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco", reason="the extra manipulation is not installed")

from poise.envs import cameras  # noqa: E402
from poise.envs.cameras import Cameras  # noqa: E402

SCENE = """<mujoco><worldbody>
  <light pos="0 0 3"/><geom name="ball" size="0.3" rgba="1 0 0 1"/><geom type="plane" pos="0 0 -1" size="3 3 1"/>
  <camera name="above" pos="0 0 2"/><camera name="far" pos="0 0 8"/>
</worldbody></mujoco>"""


@pytest.fixture
def model():
    return mujoco.MjModel.from_xml_string(SCENE)


@pytest.fixture
def data(model):
    try:
        Cameras(model, {"above": 8}).close()
    except OSError as error:
        pytest.skip(str(error))
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return data


def test_every_camera_has_its_size(model, data):
    cameras = Cameras(model, {"above": 48, "far": 700})
    near, far = cameras.look(data).values()
    cameras.close()
    assert near.shape == (48, 48, 3)
    assert far.shape == (700, 700, 3)
    assert near.dtype == np.uint8
    reds = [(picture[..., 0] > 2 * picture[..., 1].astype(int) + 40).mean() for picture in (near, far)]
    assert reds[0] > 4 * reds[1] > 0


def test_a_renderer_that_is_closed_or_forgotten_leaves_the_others_alone(model, data):
    kept, closed, forgotten = (Cameras(model, {"above": size}) for size in (32, 40, 48))
    before = kept.look(data)["above"]
    closed.look(data)
    kept.look(data)
    closed.close()
    closed.close()
    assert np.array_equal(kept.look(data)["above"], before)
    del forgotten
    assert np.array_equal(kept.look(data)["above"], before)
    kept.close()


def test_where_there_is_no_renderer_the_remedy_is_named(model, monkeypatch):
    attempts = []

    def broken(*_):
        attempts.append(None)
        raise mujoco.FatalError("gladLoadGL error")

    monkeypatch.setattr(mujoco, "Renderer", broken)
    monkeypatch.setattr(cameras, "_broken", [])
    for _ in range(2):
        with pytest.raises(OSError, match=r"cannot render .*gladLoadGL.* install libosmesa6 .*MUJOCO_GL=osmesa"):
            Cameras(model, {"above": 8})
    assert not Cameras(model, {}).look(None), "what has no pictures needs no renderer"
    assert len(attempts) == 1  # MuJoCo may end the process at a second one


def test_cameras_that_do_not_exist_are_told(model):
    with pytest.raises(ValueError, match="got the camera 'below' of 8 pixels, expected one of above, far"):
        Cameras(model, {"below": 8})
    with pytest.raises(ValueError, match="of 0 pixels, expected .* at least 1"):
        Cameras(model, {"above": 0})
