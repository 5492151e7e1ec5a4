"""Samplers, time grids, sources of noise and the loop that joins them."""

from poise.sampling.exponential import DDIM, DPMSolverPP
from poise.sampling.grids import Grid, Trailing, UniformLogSNR, UniformTime
from poise.sampling.loop import State, sample, start, trace
from poise.sampling.noise import gaussian, per_sample, tempered
from poise.sampling.runge_kutta import Euler, Heun
from poise.sampling.sampler import Sampler

__all__ = [
    "DDIM",
    "DPMSolverPP",
    "Euler",
    "Grid",
    "Heun",
    "Sampler",
    "State",
    "Trailing",
    "UniformLogSNR",
    "UniformTime",
    "gaussian",
    "per_sample",
    "sample",
    "start",
    "tempered",
    "trace",
]
