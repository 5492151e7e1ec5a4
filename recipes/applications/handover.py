"""Take a cube from a partner that offers it at a place and time of its own, and sometimes hesitates.

poise collect handover
poise train recipes/applications/handover.py
poise evaluate out/handover --recipe recipes/applications/handover.py
"""

from poise.applications import find

recipe = find("handover").recipe()
