"""Pick up a puck from above and bring it to a goal in the air (Meta-World pick-place-v3).

poise collect pick-place
poise train recipes/applications/pick-place.py
poise evaluate out/pick-place --recipe recipes/applications/pick-place.py
"""

from poise.applications import find

recipe = find("pick-place").recipe()
