"""Put a ring with a handle over a peg (Meta-World assembly-v3).

poise collect assembly
poise train recipes/applications/assembly.py
poise evaluate out/assembly --recipe recipes/applications/assembly.py
"""

from poise.applications import find

recipe = find("assembly").recipe()
