"""Carry one end of a bar and keep it level while a partner leads the other to a goal of its own.

poise collect carry
poise train recipes/applications/carry.py
poise evaluate out/carry --recipe recipes/applications/carry.py
"""

from poise.applications import find

recipe = find("carry").recipe()
