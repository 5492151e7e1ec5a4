"""Policies from elsewhere, and for elsewhere."""

from poise.interop.diffusion_policy import import_diffusion_policy
from poise.interop.foreign import import_policy
from poise.interop.lerobot import import_lerobot
from poise.interop.lerobot_export import export_lerobot
from poise.interop.robomimic import import_robomimic

__all__ = ["export_lerobot", "import_diffusion_policy", "import_lerobot", "import_policy", "import_robomimic"]
