"""Drive a nail into the wall with a hammer, held by the end of its handle or near its head.

poise collect hammer-two-ways
poise train recipes/applications/hammer-two-ways.py
poise evaluate out/hammer-two-ways --recipe recipes/applications/hammer-two-ways.py
"""

from poise.applications import find

recipe = find("hammer-two-ways").recipe()
