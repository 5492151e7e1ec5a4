"""The real client of openpi against our server: POISE_OPENPI names a Python that has openpi-client installed."""

import json
import os
import subprocess

import numpy as np
import pytest
from served import HORIZON, diffusion, echo, running

from poise.policies import RecedingHorizon

PYTHON = os.environ.get("POISE_OPENPI", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="set POISE_OPENPI to a Python with openpi-client to try the real client"
)

DRIVE = """
import json, sys
import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

host, port, key, seen = json.loads(sys.argv[1])
client = WebsocketClientPolicy(host=host, port=port, api_key=key)
broker = ActionChunkBroker(client, action_horizon=3)
executed, timing = [], []
for x in seen:
    reply = broker.infer({"x": np.float32([x]), "prompt": "push the T", "extra/image": np.zeros((4, 4, 3), np.uint8)})
    executed.append(reply["actions"].tolist())
    timing.append(sorted(reply["server_timing"]))
errors = []
for observation in ({"x": np.float32([np.nan])}, {"x": np.float32([0])}):
    try:
        client.infer(observation)
    except Exception as error:
        errors.append(f"{type(error).__name__}: {error}")
print(json.dumps([client.get_server_metadata(), executed, timing, errors]))
"""


def drive(server, key: str | None, seen: list[float]):
    arguments = [PYTHON, "-c", DRIVE, json.dumps(["127.0.0.1", server.port, key, seen])]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_openpi_drives_the_policy_as_its_own():
    policy, seen = diffusion(execute=3, history=1), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    control = RecedingHorizon(policy)
    control.reset([4])
    expected = [control.act({"x": np.float32([[x]])})[0] for x in seen]
    with running(policy, key="a key of sixteen", seed=4) as server:
        metadata, executed, timing, errors = drive(server, "a key of sixteen", seen)
    np.testing.assert_array_equal(np.float32(executed), expected)
    assert metadata["planned"] == HORIZON
    assert timing[0] == ["batch", "infer_ms", "queue_ms"]
    assert timing[3] == ["batch", "infer_ms", "prev_total_ms", "queue_ms"]
    assert errors[0].startswith("RuntimeError: Error in inference server:\ngot NaN or infinity in feature 'x'")
    assert errors[1].startswith("ConnectionClosedError: received 1011")


def test_openpi_is_told_that_its_key_is_wrong():
    with running(echo(), key="a key of sixteen") as server, pytest.raises(AssertionError, match="HTTP 401"):
        drive(server, "another", [0.0])
