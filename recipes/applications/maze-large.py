"""Roll a ball through PointMaze's large maze by one of two ways.

poise collect maze-large
poise train recipes/applications/maze-large.py
poise evaluate out/maze-large --recipe recipes/applications/maze-large.py
"""

from poise.applications import find

recipe = find("maze-large").recipe()
