"""Take a cube from a partner that two cameras see, one of them at the wrist.

poise collect handover-images
poise train recipes/applications/handover_images.py
poise evaluate out/handover_images --recipe recipes/applications/handover_images.py
"""

from poise.applications import find

recipe = find("handover-images").recipe()
