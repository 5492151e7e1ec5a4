import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from served import HORIZON, Peer, echo, running
from test_serving import KEY, closed

import poise.serving.dashboard
from poise.serving import Dashboard
from poise.serving.limits import authorised

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<img src=x onerror=alert(1)>"


@contextmanager
def shown(policy=None, **more):
    policy = policy or echo()
    dashboard = Dashboard(policy)
    with running(policy, dashboard=dashboard, observers=[dashboard], **more) as server:
        yield server


def get(server, path: str, **headers: str):
    """Status, headers and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def state(server) -> dict:
    return json.loads(get(server, "/state")[2])


def basic(key: str) -> str:
    return f"Basic {base64.b64encode(f'anyone:{key}'.encode()).decode()}"


def test_the_state_is_what_happened():
    with shown(filters=[lambda plan: np.minimum(plan, 4)]) as server:
        assert state(server)["latency"] == {"median": None, "p95": None}
        left, right = Peer(server), Peer(server)
        replies = [left.ask(1.0), left.ask(5.0), right.ask(2.0, env_id="arm"), left.ask(3.0, reset=True)]
        right.send(13.0, env_id="arm")
        closed_with = right.receive(), closed(right)
        while (found := state(server))["connections"] > 1:
            time.sleep(0.01)
    assert closed_with == ("13 cannot be planned for", 1011)
    assert [found["counts"][name] for name in ("requests", "plans", "errors")] == [5, 4, 1]
    assert (found["connections"], found["changed"], found["planned"], found["execute"]) == (1, 1, HORIZON, 2)
    timing = [reply["server_timing"] for reply in replies]
    total = [one["infer_ms"] + one["queue_ms"] for one in timing]
    np.testing.assert_allclose(np.add(found["infer_ms"], found["queue_ms"]), total, atol=2e-3)
    np.testing.assert_allclose(found["latency"]["median"], np.median(total))
    np.testing.assert_allclose(found["latency"]["p95"], np.percentile(total, 95))
    first, second = found["robots"]
    assert [(one["client"], one["robot"], one["episode"], one["plan"]) for one in (first, second)] == [
        (0, None, 1, 0),
        (1, "arm", 0, 0),
    ]
    np.testing.assert_array_equal(first["plans"], [replies[3]["actions"]])  # a new episode begins a new picture
    np.testing.assert_array_equal(second["plans"], [replies[2]["actions"]])


def test_what_is_kept_is_bounded():
    with shown() as server:
        peer = Peer(server)
        for step in range(300):
            peer.ask(100.0, env_id=step % 64)
        Peer(server).ask(100.0)  # one too many
        for _ in range(20):
            last = peer.ask(7.0, env_id=3)
        peer.ask(8.0, env_id=5)
        found = state(server)
    assert len(found["infer_ms"]) == len(found["batch"]) == 240
    assert len(found["robots"]) == 12
    assert found["hidden"] == 52
    (mine,) = [one for one in found["robots"] if one["robot"] == 3]
    assert len(mine["plans"]) == 6
    np.testing.assert_array_equal(mine["plans"][-1], last["actions"])


def test_only_what_is_shown_is_converted(monkeypatch):
    shown_robots, convert = [], poise.serving.dashboard._shown
    monkeypatch.setattr(poise.serving.dashboard, "_shown", lambda *one: shown_robots.append(one) or convert(*one))
    with shown() as server:
        peer = Peer(server)
        for robot in range(20):
            peer.ask(1.0, env_id=robot)
        while (found := state(server))["hidden"] < 8:  # the last plan is told to observers after its reply
            shown_robots.clear()
    assert len(shown_robots) == len(found["robots"]) == 12


def test_the_page_is_there_only_when_it_is_asked_for():
    with running(echo()) as server:
        assert get(server, "/")[0] == get(server, "/state")[0] == 426  # a WebSocket is expected
    with shown() as server:
        for path, kind in (("/", "text/html"), ("/style.css", "text/css"), ("/page.js", "text/javascript")):
            status, headers, body = get(server, path)
            assert (status, headers["Content-Type"].split(";")[0]) == (200, kind)
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", body)
        assert get(server, "/../limits.py")[0] == get(server, "/__init__.py")[0] == 404
        assert get(server, "/healthz")[2] == "OK\n"
        assert Peer(server).ask(1.0)["actions"][0, 0] == 1


def test_names_of_other_hosts_do_not_lead_to_it():
    with shown() as server:
        for host in ("evil.example", "127.0.0.1.evil.example:8000", "10.0.0.7"):
            assert get(server, "/state", Host=host)[0] == get(server, "/metrics", Host=host)[0] == 403
        for host in ("localhost:9", "127.0.0.1", "[::1]:8000"):
            assert get(server, "/state", Host=host)[0] == get(server, "/metrics", Host=host)[0] == 200


def test_it_needs_the_key_where_clients_do():
    with shown(key=KEY) as server:
        for path in ("/", "/state", "/page.js"):
            status, headers, _ = get(server, path)
            assert status == 401
            assert headers["WWW-Authenticate"].startswith("Basic ")
            assert get(server, path, Authorization=basic(f"{KEY}s"))[0] == 401
            assert get(server, path, Authorization=basic(KEY), Host="server.example")[0] == 200
            assert get(server, path, Authorization=f"Api-Key {KEY}")[0] == 200
        assert server.server.counts["connections_refused"] == 6


@pytest.mark.parametrize("header", ["Basic", "Basic ", "Basic %%%", "Basic /w==", f"Basic {KEY}", f"Bearer {KEY}", KEY])
def test_what_is_no_key_is_refused(header):
    assert not authorised(KEY, header)


def test_the_files_of_the_page_lie_in_the_package():
    folder = Path(poise.serving.dashboard.__file__).parent
    assert {file.name for file in folder.iterdir()} >= {"index.html", "page.js", "style.css"}


def dumped(server, *options: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    ran = subprocess.run(
        [*command, *options, f"http://127.0.0.1:{server.port}/"], capture_output=True, text=True, check=True, timeout=60
    )
    return ran.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in chromium, which is not installed")
def test_the_page_draws_the_plans_of_a_live_robot(tmp_path):
    with shown() as server:
        peer = Peer(server)
        for x in (0.1, 0.5, -0.4, 0.3):
            plan = peer.ask(x, env_id=EVIL)["actions"]
        page = dumped(server, f"--user-data-dir={tmp_path}")
    assert f"Connection 0, robot {EVIL}" in unescape(page)
    assert "<img" not in page
    assert "episode 0, plan 3" in page
    assert re.search(r"<dt>errors</dt><dd class=\"none\">0</dd>", page)
    assert 'id="lost" role="status" hidden' in page
    paths = re.findall(r'<path class="new" d="([^"]*)"', page)
    assert len(paths) == 2  # dimensions of the action
    points = np.array([float(number) for number in re.findall(r"-?[\d.]+", paths[0])]).reshape(-1, 2)
    assert len(points) == HORIZON
    np.testing.assert_allclose(np.diff(points[:, 0]), np.diff(points[:, 0]).mean(), atol=0.11)
    # Up is more: the path is the plan under an affine map of negative slope, to the decimal that it is written with.
    slope, offset = np.polyfit(plan[:, 0], points[:, 1], 1)
    assert slope < -20
    np.testing.assert_allclose(slope * plan[:, 0] + offset, points[:, 1], atol=0.11)
