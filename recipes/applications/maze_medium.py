"""Roll a ball through PointMaze's medium maze by one of two ways.

poise collect maze-medium
poise train recipes/applications/maze_medium.py
poise evaluate out/maze_medium --recipe recipes/applications/maze_medium.py
"""

from poise.applications import find

recipe = find("maze-medium").recipe()
