"""Pick up a puck, coming from its left or its right, and bring it to a goal in the air.

poise collect pick-place-sides
poise train recipes/applications/pick_place_sides.py
poise evaluate out/pick_place_sides --recipe recipes/applications/pick_place_sides.py
"""

from poise.applications import find

recipe = find("pick-place-sides").recipe()
