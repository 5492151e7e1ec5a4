"""What diffusion policies are used for on robots: tasks with experts that demonstrate them, and their recipes."""

from poise.applications.application import Application
from poise.applications.catalogue import applications, find
from poise.applications.driving import Driven, Driver

__all__ = ["Application", "Driven", "Driver", "applications", "find"]
