"""A task of Meta-World (extra `manipulation`) from demonstrations of a scripted expert, with all defaults.

    poise collect pick-place
    poise train recipes/metaworld.py
    poise evaluate out/metaworld --recipe recipes/metaworld.py

The environment variable METAWORLD_TASK names another task than pick-place, for both of the last commands:

    METAWORLD_TASK=assembly poise train recipes/metaworld.py --out out/assembly
"""

import os

from poise.applications import find

recipe = find(os.environ.get("METAWORLD_TASK", "pick-place")).recipe()
