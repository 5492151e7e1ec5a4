"""`poise serve CHECKPOINT`: plans for robots over the network."""

import logging
import os
import ssl
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from poise.cli.running import Machine, Sampling
from poise.policies import Safety, load_checkpoint
from poise.serving import Dashboard, Limits, Observer, Planner, Recording, Server, read_key, run


@dataclass(frozen=True)
class Listen:
    """Where the server listens, and to whom.

    Attributes:
        host: Address; others than this machine reach only one that is not 127.0.0.1, and only with a key.
        port: Port; 0 takes any that is free.
        api_key_file: File with the key that clients must show, 16 visible characters or more.
        tls_cert: Certificate chain in PEM; with it clients connect to wss://.
        tls_key: Its private key in PEM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def key(self) -> str | None:
        """The key that clients must show."""
        return None if self.api_key_file is None else read_key(self.api_key_file)

    def tls(self) -> ssl.SSLContext | None:
        """Certificate and key, ready to use.

        Raises:
            ValueError: One without the other.
        """
        if self.tls_cert is None or self.tls_key is None:
            if self.tls_cert != self.tls_key:
                raise ValueError("got one of --tls-cert and --tls-key, expected both or none")
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.tls_cert, self.tls_key)
        return context


@dataclass(frozen=True)
class Watch:
    """What is kept and shown of what happens.

    Attributes:
        record: Folder for every observation, plan and time, which poise dataset and poise replan read; a new one, or
            that of an earlier run.
        dashboard: Show plans, times and counts on a page at the address of the server, http:// instead of ws://.
    """

    record: Path | None = None
    dashboard: bool = False


def serve(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    listen: Annotated[Listen, tyro.conf.arg(name="")] = Listen(),  # noqa: B008 (frozen)
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = Sampling(),  # noqa: B008 (frozen)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine(),  # noqa: B008 (frozen)
    limits: Annotated[Limits, tyro.conf.arg(name="")] = Limits(),  # noqa: B008 (frozen)
    watch: Annotated[Watch, tyro.conf.arg(name="")] = Watch(),  # noqa: B008 (frozen)
    safety: bool = True,
    seed: int | None = None,
) -> None:
    """Serve a policy to many robots at once, over WebSockets in openpi's protocol, until SIGTERM or Ctrl-C.

    On the robot, which needs no torch: pip install --no-deps poise, pip install numpy msgpack websockets, and

        from poise.client import Client
        with Client("ws://127.0.0.1:8000") as client:
            actions = client.infer({"state": state})["actions"]

    `openpi-client` works as well. `poise.robot.Robot` turns plans into an action or a hold for every control step.
    For robots elsewhere either forward the port (ssh -L 8000:127.0.0.1:8000 SERVER), or give --host 0.0.0.0 with
    --api-key-file and, on networks that others share, --tls-cert and --tls-key. GET /healthz tells whether the server
    lives, GET /metrics what it did (extra `metrics`).

    Args:
        checkpoint: A file or directory of `poise train`.
        listen: Where, and to whom.
        sampling: How plans are sampled.
        machine: What runs the policy.
        limits: What a client may do.
        watch: What is kept and shown.
        safety: Hold every plan to the limits that the checkpoint notes of its demonstrations.
        seed: Of the noise of every robot, so that its plans depend on its observations alone; by default each draws
            one.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    found = load_checkpoint(checkpoint)
    limiting = _limiting(found.notes) if safety else None
    policy = machine.take(found.policy, sampling)
    key, tls = listen.key(), listen.tls()
    with ExitStack() as stack:
        dashboard = Dashboard(policy) if watch.dashboard else None
        path = watch.record
        recording = None if path is None else stack.enter_context(Recording(path, policy.spec))
        observers: list[Observer] = [one for one in (dashboard, recording) if one is not None]
        planner = Planner(policy, seed, observers=observers, safety=limiting, sizes=machine.sizes())
        server = Server(planner, limits, key, dashboard, recording)
        run(server, listen.host, listen.port, tls, partial(print, flush=True))
    if server.busy:  # a thread is still inside the policy, and the interpreter would abort it and itself
        sys.stdout.flush()
        os._exit(0)


def _limiting(notes: Mapping[str, Any]) -> Safety:
    try:
        return Safety.of(notes)
    except ValueError as error:
        raise ValueError(f"{error}. Or serve without limits: --no-safety") from error


__all__ = ["Listen", "Watch", "serve"]
