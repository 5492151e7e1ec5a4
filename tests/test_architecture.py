"""The layers, sizes and exports that the design promises; see docs/decisions.md."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import poise

ROOT = Path(poise.__file__).parent
LAYERS = {
    "typing": 0, "tensors": 0, "plain": 0, "schedules": 0, "predictions": 0, "objectives": 0, "denoisers": 0,
    "guidance": 0, "dynamics": 0,
    "sampling": 1, "likelihood": 1, "latent": 1,
    # What the islands share but the mathematical core does not need, such as geometry of robots.
    "extras": 1.5, "rotations": 1.5, "draws": 1.5, "watchdog": 1.5, "precision": 1.5, "files": 1.5, "limits": 1.6,
    "nn": 2, "data": 2, "envs": 2, "diagnostics": 2,
    # What runs on robots, without PyTorch.
    "runtime": 2, "wire": 2, "client": 3, "robot": 4,
    "policies": 3, "testing": 3,
    "training": 4, "evaluation": 4, "interop": 4,
    "recipe": 5, "serving": 5, "applications": 5.5,
    "cli": 6, "__main__": 7, "__init__": 7,
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))
LINES, FUNCTION_LINES, PARAMETERS, EXEMPTIONS, CORE_STATEMENTS = 400, 50, 8, 0, 1200
EXTRAS = {
    "numcodecs": "data/chunks.py", "imagecodecs": "data/chunks.py", "h5py": "data/hdf5.py", "PIL": "data/images.py",
    "pyarrow": "data/parquet.py", "av": "data/video.py", "huggingface_hub": "interop/hub.py",
    "timm": "nn/encoders/vision.py", "metaworld": "envs/metaworld.py",
    "mujoco": ("envs/aloha.py", "envs/cameras.py", "envs/kinematics.py"), "gym_aloha": "envs/aloha.py",
    "gymnasium_robotics": "envs/maze.py",
    "accelerate": "training/scale.py", "ray": "cli/engines/cluster.py", "scipy": "policies/couplings.py",
    "tensorboard": "training/trackers/tensorboard.py", "wandb": "training/trackers/weights_and_biases.py",
    "mlflow": "training/trackers/mlflow_runs.py", "trackio": "training/trackers/trackio_runs.py",
    "msgpack": "wire.py", "prometheus_client": "serving/metrics.py", "onnxruntime": "runtime.py",
    "onnxscript": "interop/onnx_export.py",
    "websockets": ("client.py", "serving/server.py"),  # two ends, which run on different machines
}  # fmt: skip
# Run in processes of their own, with limits; nothing of poise imports them.
PROGRAMS = ROOT / "interop/unpickle.py", ROOT / "data/hdf5_probe.py", ROOT / "data/limited.py"


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int:
    return LAYERS[module.split(".")[0]]


def imports(file: Path) -> Iterator[str]:
    """Modules of poise that a file imports, without the leading `poise.`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "poise":
            yield node.module.removeprefix("poise").lstrip(".") or "__init__"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "poise":
                    yield alias.name.removeprefix("poise").lstrip(".") or "__init__"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down(file):
    here = name_of(file)
    for target in imports(file):
        assert ROOT / (target.replace(".", "/") + ".py") not in PROGRAMS, f"{here} imports {target}"
        mine, other = here.split(".")[0], target.split(".")[0]
        # The core's small files may use each other; above it a layer's packages are islands.
        allowed = mine == other or layer_of(target) < layer_of(here) or layer_of(here) == layer_of(target) <= 1
        assert allowed, f"{here} (layer {layer_of(here)}) imports {target} (layer {layer_of(target)})"


def test_there_is_no_cycle():
    known = {name_of(f) for f in FILES}
    graph = {name_of(f): {t for t in imports(f) if t in known and t != name_of(f)} for f in FILES}
    done: set[str] = set()

    def visit(node: str, path: tuple[str, ...]) -> None:
        assert node not in path, f"cycle: {' -> '.join((*path, node))}"
        if node not in done:
            for target in graph[node]:
                visit(target, (*path, node))
            done.add(node)

    for node in graph:
        visit(node, ())


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_functions_and_signatures_are_small(file):
    text = file.read_text()
    assert len(text.splitlines()) <= LINES
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and "# budget:" not in lines[node.lineno - 2] + lines[node.lineno - 1]
        ):
            where = f"{name_of(file)}.{node.name}"
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{where} is too long"
            count = len([a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg not in ("self", "cls")])
            assert count <= PARAMETERS, f"{where} has {count} parameters"


def test_exemptions_are_counted():
    assert sum(f.read_text().count("# budget:") for f in FILES) == EXEMPTIONS


def test_the_mathematical_core_is_small():
    core = [f for f in FILES if layer_of(name_of(f) or "__init__") <= 1]
    assert sum(statements(f) for f in core) <= CORE_STATEMENTS


def statements(file: Path) -> int:
    """Statements without imports and docstrings, which no formatter changes; see docs/decisions.md."""
    nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.stmt)]
    words = [n for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    return len(nodes) - len(words) - sum(isinstance(n, ast.Import | ast.ImportFrom) for n in nodes)


@pytest.mark.parametrize("module", sorted(m.name for m in pkgutil.walk_packages([str(ROOT)], "poise.")))
def test_all_is_sorted_and_complete(module):
    if module in ("poise.__main__", "poise.data.formats"):
        return
    loaded = importlib.import_module(module)
    exported = list(loaded.__all__)
    assert exported == sorted(exported, key=_ruff_order), "__all__ is not sorted"
    assert all(hasattr(loaded, name) for name in exported)
    source = Path(loaded.__file__ or "")
    if source.name != "__init__.py":
        tree = ast.parse(source.read_text())
        public = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"}
        assert public <= set(exported), f"{module} does not export {public - set(exported)}"


def _ruff_order(name: str) -> tuple[int, str]:
    """Constants, classes, functions: the order of ruff's RUF022."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_extras_are_imported_in_one_file(file):
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            homes = EXTRAS.get(name.split(".")[0])
            homes = (homes,) if isinstance(homes, str) else homes
            assert homes is None or file in (*(ROOT / home for home in homes), *PROGRAMS), f"{file} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_on_a_loading_path_executes_code(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            pickles = {"pickle", "dill", "cloudpickle", "joblib"} & {n.split(".")[0] for n in names}
            assert not pickles or file == PROGRAMS[0]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load"), f"{file}:{node.lineno} calls {called}"
            allowed = file.name == "recipe.py" and called == "spec.loader.exec_module"
            assert "exec_module" not in called or allowed


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_attribute_is_probed(file):
    calls = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)]
    assert not [c for c in calls if ast.unparse(c.func) == "hasattr"]
