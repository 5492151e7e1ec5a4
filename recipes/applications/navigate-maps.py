"""Drive past three discs that stand elsewhere in every episode, so that policies are tried on unseen maps.

poise collect navigate-maps
poise train recipes/applications/navigate-maps.py
poise evaluate out/navigate-maps --recipe recipes/applications/navigate-maps.py
"""

from poise.applications import find

recipe = find("navigate-maps").recipe()
