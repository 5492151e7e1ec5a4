"""Policies from elsewhere, and for elsewhere."""

from poise.interop.diffusion_policy import import_diffusion_policy
from poise.interop.foreign import import_policy
from poise.interop.lerobot import import_lerobot
from poise.interop.lerobot_export import export_lerobot
from poise.interop.onnx_export import export_onnx
from poise.interop.program import export_torch
from poise.interop.robomimic import import_robomimic

__all__ = [
    "export_lerobot",
    "export_onnx",
    "export_torch",
    "import_diffusion_policy",
    "import_lerobot",
    "import_policy",
    "import_robomimic",
]
