"""What is not imported takes no time: start-up by structure, which does not depend on the machine."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import poise
from poise.cli import VERBS

HEAVY = {"torch", "numpy", "matplotlib", "gymnasium", "tyro", "huggingface_hub", "safetensors", "jaxtyping", "tqdm"}
EXTRAS = {"accelerate", "ray", "h5py", "pyarrow", "av", "PIL", "numcodecs", "tensorboard", "wandb", "mlflow", "trackio"}
DYNAMO = {"torch._dynamo", "torch._inductor", "sympy"}  # two seconds


def imported(code: str) -> set[str]:
    """The modules that a fresh process has when it ran the code."""
    tail = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def run(*arguments: str) -> str:
    return f"""
import sys
from poise.cli import main
sys.argv = ["poise", *{arguments!r}]
try:
    main()
except SystemExit:
    pass"""


def test_importing_poise_waits_for_nothing():
    assert not imported("import poise") & (HEAVY | EXTRAS)


def test_help_waits_for_nothing():
    assert not imported(run("--help")) & (HEAVY | EXTRAS)


def test_a_training_imports_no_more_than_it_needs():
    found = imported(run("train", "--help"))
    assert {"torch", "tyro", "poise.cli.fitting"} <= found
    assert not found & (EXTRAS | DYNAMO | {"matplotlib", "huggingface_hub"})


def test_a_name_imports_its_layer_only():
    assert not {name for name in imported("from poise import VPCosine") if name.startswith("poise.")} - {
        "poise.schedules"
    }


def test_every_public_name_is_that_of_its_module():
    tree = ast.parse(Path(poise.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    named = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        named |= {alias.name: node.module for alias in node.names}
    assert sorted(named) == sorted(poise.__all__)
    for name, module in named.items():
        assert getattr(poise, name) is getattr(importlib.import_module(str(module)), name), name
    assert set(poise.__all__) <= set(dir(poise))
    with pytest.raises(AttributeError, match="module 'poise' has no attribute 'VPcosine'"):
        poise.VPcosine  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_checkpoints_know_every_class_whatever_was_imported():
    code = """
import importlib, pkgutil
from poise.plain import concrete
from poise.policies.checkpoint import _BASES
before = set(concrete(*_BASES))
import poise
for module in pkgutil.walk_packages(poise.__path__, "poise."):
    if module.name != "poise.__main__":
        importlib.import_module(module.name)
later = {name for name, kind in concrete(*_BASES).items() if not kind.__module__.startswith("poise.testing")} - before
assert not later, later"""
    assert "poise.policies" in imported(code)


@pytest.mark.parametrize("name", sorted(set(VERBS) - {"train"}))
def test_the_overview_says_what_the_verb_says(name):
    verb = VERBS[name]
    function = getattr(importlib.import_module(f"poise.cli.{verb.module}"), verb.function)
    assert (function.__doc__ or "").splitlines()[0] == verb.about
