"""Grasp a hammer and drive a nail into the wall with it (Meta-World hammer-v3).

poise collect hammer
poise train recipes/applications/hammer.py
poise evaluate out/hammer --recipe recipes/applications/hammer.py
"""

from poise.applications import find

recipe = find("hammer").recipe()
