"""Drive past three discs by one of four equally good routes.

poise collect navigate
poise train recipes/applications/navigate.py
poise evaluate out/navigate --recipe recipes/applications/navigate.py
"""

from poise.applications import find

recipe = find("navigate").recipe()
