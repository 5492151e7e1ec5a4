"""Cross an arena to a goal among six discs that move and bounce off the walls.

poise collect avoid
poise train recipes/applications/avoid.py
poise evaluate out/avoid --recipe recipes/applications/avoid.py
"""

from poise.applications import find

recipe = find("avoid").recipe()
