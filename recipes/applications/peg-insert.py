"""Push a peg sideways into a hole (Meta-World peg-insert-side-v3).

poise collect peg-insert
poise train recipes/applications/peg-insert.py
poise evaluate out/peg-insert --recipe recipes/applications/peg-insert.py
"""

from poise.applications import find

recipe = find("peg-insert").recipe()
