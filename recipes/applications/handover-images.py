"""Take a cube from a partner that two cameras see, one of them at the wrist.

poise collect handover-images
poise train recipes/applications/handover-images.py
poise evaluate out/handover-images --recipe recipes/applications/handover-images.py
"""

from poise.applications import find

recipe = find("handover-images").recipe()
