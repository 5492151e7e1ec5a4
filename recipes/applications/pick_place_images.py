"""Pick up a puck that two cameras see, and bring it to a goal in the air, which is told.

poise collect pick-place-images
poise train recipes/applications/pick_place_images.py
poise evaluate out/pick_place_images --recipe recipes/applications/pick_place_images.py
"""

from poise.applications import find

recipe = find("pick-place-images").recipe()
