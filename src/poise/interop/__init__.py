"""Policies from elsewhere, and for elsewhere."""

from poise.interop.lerobot import import_lerobot
from poise.interop.lerobot_export import export_lerobot

__all__ = ["export_lerobot", "import_lerobot"]
