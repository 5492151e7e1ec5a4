"""Pick up a puck, coming from its left or its right, and bring it to a goal in the air.

poise collect pick-place-sides
poise train recipes/applications/pick-place-sides.py
poise evaluate out/pick-place-sides --recipe recipes/applications/pick-place-sides.py
"""

from poise.applications import find

recipe = find("pick-place-sides").recipe()
