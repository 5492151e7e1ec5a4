"""Pictures of a MuJoCo simulation by named cameras of different sizes, fast enough for every control step."""

import sys
import traceback
from collections.abc import Mapping
from typing import Any, final

import mujoco
import numpy as np
from numpy.typing import NDArray

_broken: list[str] = []
"""Why no renderer can be made: MuJoCo may end the process at a second attempt."""

_FLAGS: Any = mujoco.mjtRndFlag  # pyright: ignore[reportAttributeAccessIssue]


@final
class Cameras:
    """Renders without shadows and multisampling.

    Args:
        model: `mujoco.MjModel`.
        sizes: Name of a camera of the model -> height and width of its square pictures in pixels; where there are none,
            no renderer is needed.

    Raises:
        OSError: There is no renderer on this machine.
        ValueError: No such camera, or a size below 1.
    """

    def __init__(self, model: Any, sizes: Mapping[str, int]) -> None:
        self._renderers: dict[str, Any] = {}
        known = [model.camera(number).name for number in range(model.ncam)]
        for name, size in sizes.items():
            if name not in known or size < 1:
                raise ValueError(
                    f"got the camera {name!r} of {size} pixels, expected one of {', '.join(known)}, of at least 1"
                )
        model.vis.quality.offsamples = 0
        screen = model.vis.global_
        screen.offwidth = max([screen.offwidth, *sizes.values()])
        screen.offheight = max([screen.offheight, *sizes.values()])
        for name, size in sizes.items():
            renderer = _renderer(model, size)
            for costly in (_FLAGS.mjRND_SHADOW, _FLAGS.mjRND_REFLECTION):
                renderer.scene.flags[costly] = 0
            self._renderers[name] = renderer

    def look(self, data: Any) -> dict[str, NDArray[np.uint8]]:
        """Picture (size, size, 3) of every camera; `data` is `mujoco.MjData`."""
        pictures = {}
        for name, renderer in self._renderers.items():
            renderer.update_scene(data, name)
            pictures[name] = renderer.render()
        return pictures

    def close(self) -> None:
        """Free the renderers."""
        while self._renderers:
            _, renderer = self._renderers.popitem()
            renderer.render()  # makes its context the current one: MuJoCo frees whatever is in that
            renderer.close()

    def __del__(self) -> None:
        self.close()


def _renderer(model: Any, size: int) -> Any:
    if not _broken:
        try:
            return mujoco.Renderer(model, size, size)
        except Exception as error:  # each platform of OpenGL has errors of its own
            _broken.append(str(error) or type(error).__name__)
            hook = sys.unraisablehook
            sys.unraisablehook = lambda _: None  # what MuJoCo has half made complains as it is freed
            traceback.clear_frames(error.__traceback__)
            sys.unraisablehook = hook
    raise OSError(
        f"MuJoCo cannot render on this machine ({_broken[0]}), expected OpenGL: without a screen, apt-get install "
        "libosmesa6 and set MUJOCO_GL=osmesa (with a GPU also MUJOCO_GL=egl) before Python starts"
    )


__all__ = ["Cameras"]
