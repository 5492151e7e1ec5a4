"""The hub: pushed to and loaded from a server on this machine by the real client."""

import base64
import importlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from poise import DiffusionPolicy, Episodes, PolicySpec, Windows
from poise.interop.card import model_card
from poise.interop.hub import from_pretrained, push_to_hub

FIGURES = {
    "episodes": 500,
    "success": 0.778,
    "success_low": 0.739,
    "success_high": 0.812,
    "reward_max_mean": 0.9712,
    "plan_ms_median": 4.04,
}
RESULTS = {"policies": {"DiffusionPolicy": FIGURES}, "machine": "2 x some processor"}
NOTES = {
    "recipe": "recipes/pusht.py",
    "demonstrations": {"training": 202, "windows": 25_000},
    "progress": {"step": 900},
}


@pytest.fixture
def policy() -> DiffusionPolicy:
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).numpy()
    policy = DiffusionPolicy(PolicySpec({"state": (3,)}, action=3, horizon=8, execute=4))
    policy.fit(Windows(Episodes({"state": rows, "action": rows}, [40]), ("state",), 2, 8, 4))
    return policy.eval()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as the client asks for, with files in memory."""

    files: dict[str, bytes]
    created: list[dict]

    def log_message(self, *_):
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": "c" * 40, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.headers.get("Content-Length"):  # chunked
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        if self.path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            self.answer(json.dumps({"url": f"http://{self.headers['Host']}/me/policy"}).encode())
        elif "/preupload/" in self.path:
            files = [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            self.answer(json.dumps({"files": files}).encode())
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            reply = {
                "commitUrl": f"http://{self.headers['Host']}/me/policy/commit/1",
                "commitOid": "c" * 40,
                "success": True,
            }
            self.answer(json.dumps(reply).encode())
        else:
            self.answer(b"{}")

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        if "/resolve/" not in self.path:
            self.answer(json.dumps({"id": "me/policy", "sha": "c" * 40, "siblings": []}).encode())
        elif name in self.files:
            self.answer(self.files[name], ETag=f'"{name}"')
        else:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")

    def do_HEAD(self):
        self.do_GET()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants", reason="the extra 'hub' is not installed")
    handler = type("Handler", (Hub,), {"files": {}, "created": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False  # so that closing waits for open connections
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    # The download has a name of its own for it, which is older than this test wherever another imported the module.
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, importlib.import_module("huggingface_hub.file_download")):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_pushed_policy_comes_back_the_same(hub, policy):
    assert push_to_hub(policy, "me/policy", NOTES, RESULTS, private=True).endswith("/me/policy/commit/1")
    assert hub.created[0]["private"] is True
    assert sorted(set(hub.files) - {".gitattributes"}) == ["README.md", "evaluation.json", "policy.safetensors"]
    again = from_pretrained("me/policy")
    assert again.spec == policy.spec
    for name, tensor in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    header = hub.files["README.md"].decode().split("---")[1]
    assert "pipeline_tag: robotics" in header
    assert "value: 0.778" in header


def test_the_command_line_pushes_with_the_figures(hub, policy, tmp_path, monkeypatch, capsys):
    from poise.cli import main

    policy.save(tmp_path, NOTES)
    (tmp_path / "evaluation.json").write_text(json.dumps(RESULTS))
    arguments = ["push", str(tmp_path), "me/policy", "--results", str(tmp_path / "evaluation.json")]
    monkeypatch.setattr("sys.argv", ["poise", *arguments])
    main()
    assert capsys.readouterr().out.strip().endswith("/me/policy/commit/1")
    assert "77.8% (73.9% to 81.2%)" in hub.files["README.md"].decode()


def test_a_path_needs_no_hub(policy, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    policy.save(tmp_path)
    assert from_pretrained(tmp_path).spec == policy.spec
    with pytest.raises(ImportError, match=r"pip install 'poise\[hub\]'"):
        from_pretrained("me/policy")


def test_the_card_tells_what_is_known(policy):
    card = model_card(policy, NOTES, RESULTS, "me/policy")
    weights = sum(p.numel() for p in policy.parameters())
    for words in (
        f"{weights:,} parameters",
        "it plans 8 actions of 3 numbers and executes 4",
        'poise.from_pretrained("me/policy")',
        "| `state` | 3 |",
        "| demonstrations | 202 |",
        "| DiffusionPolicy | 500 | 77.8% (73.9% to 81.2%) | 0.971 | 4.0 ms |",
        "Machine: 2 x some processor.",
    ):
        assert words in card
    assert "None is recorded here" in model_card(policy, {}, None, "me/policy")
