"""Roll a ball through PointMaze's medium maze by one of two ways.

poise collect maze-medium
poise train recipes/applications/maze-medium.py
poise evaluate out/maze-medium --recipe recipes/applications/maze-medium.py
"""

from poise.applications import find

recipe = find("maze-medium").recipe()
