"""Pick up a puck that two cameras see, and bring it to a goal in the air, which is told.

poise collect pick-place-images
poise train recipes/applications/pick-place-images.py
poise evaluate out/pick-place-images --recipe recipes/applications/pick-place-images.py
"""

from poise.applications import find

recipe = find("pick-place-images").recipe()
