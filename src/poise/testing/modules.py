"""Conformance of networks and encoders."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from poise.nn import Encoder, EncoderSpec, Network, NetworkSpec
from poise.testing.assertions import near, require

_DOUBLE = torch.float64


def check_network(spec: NetworkSpec, horizon: int = 16, action: int = 3) -> None:
    """Every parameter and input matters, no output depends on its batch or on earlier calls, the state dict is all.

    In evaluation mode, at several sizes, in float64, float32 and under bfloat16 autocast. A deep copy, such as the
    running average of the weights, stands alone; an empty batch passes; and all that a call makes is on its device.
    """
    torch.manual_seed(0)
    network = spec.build(horizon, action, (2, 5)).double().eval()
    _randomise(network)
    given = x, log_snr, tokens = _network_inputs(4, horizon, action, (2, 5))
    y = _output(network, *given)
    y.square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    require(not idle, f"{spec}: no gradient reaches {idle}")
    with torch.no_grad():
        _check_inputs(spec, network, given)
        alone = torch.cat([_output(network, *(values[i : i + 1] for values in given)) for i in range(4)])
        near(alone, y, 1e-9, f"{spec}: an output depends on its batch")
        prepared = network.prepare(tokens)
        for shift in (0.5, -0.5, 0.5, 0.0):
            fresh = _output(network, x, log_snr + shift, tokens)
            near(network(x, log_snr + shift, prepared), fresh, 1e-9, f"{spec}: a call changes what was prepared")
        twin = spec.build(horizon, action, (2, 5)).double().eval()
        twin.load_state_dict(network.state_dict())
        require(torch.equal(_output(twin, *given), y), f"{spec}: the state dict is not all")
        _check_copy(spec, network, lambda module, move: _output(module, *map(move, given)))
        for sizes in ((horizon, action, (2, 5)), (2 * horizon, action + 1, (1, 7)), (horizon, 1, (3, 2))):
            other, values = spec.build(*sizes).eval(), _network_inputs(2, *sizes)
            got = other(*(v.float() for v in values[:2]), other.prepare(values[2].float()))
            require(got.shape == values[0].shape, f"{spec}: output {tuple(got.shape)} for {tuple(values[0].shape)}")
        _check_precisions(spec, network, given, y)


def _network_inputs(batch: int, horizon: int, action: int, tokens: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, c = (torch.randn(batch, *s, generator=generator, dtype=_DOUBLE) for s in ((horizon, action), tokens))
    return x, torch.linspace(-3, 3, batch, dtype=_DOUBLE), c


def _output(network: Network, x: Tensor, log_snr: Tensor, tokens: Tensor) -> Tensor:
    return network(x, log_snr, network.prepare(tokens))


def _check_inputs(spec: NetworkSpec, network: Network, given: tuple[Tensor, Tensor, Tensor]) -> None:
    """Each output depends on each input, on each token, on their order, and on the order of the steps of the plan."""
    (x, log_snr, tokens), y = given, _output(network, *given)
    rounding = 1e-11 * y.norm()  # what is far above it was no accident, however little a fresh network heeds it
    changed = {"x": (x + 0.1, log_snr, tokens), "log_snr": (x, log_snr + 0.5, tokens)}
    for i in range(tokens.shape[1]):
        without = tokens.clone()
        without[:, i] = 0
        changed[f"token {i}"] = x, log_snr, without
    changed["the order of the tokens"] = x, log_snr, tokens.flip(1)
    for name, values in changed.items():
        moved = (_output(network, *values) - y).flatten(1).norm(dim=1).min()
        require(bool(moved > rounding), f"{spec}: {name} does not matter")
    flipped = _output(network, x.flip(1), log_snr, tokens).flip(1)
    require(bool((flipped - y).norm() > rounding), f"{spec}: the order of the steps does not matter")


def _check_precisions(spec: NetworkSpec, network: Network, given: tuple[Tensor, Tensor, Tensor], y: Tensor) -> None:
    network, scale = network.float(), y.abs().max().item()
    single = [values.float() for values in given]
    near(_output(network, *single).double(), y, 1e-4 * scale, f"{spec}: float32 strays from float64")
    with torch.autocast("cpu", torch.bfloat16):
        half = _output(network, *single)
    near(half.double(), y, 0.1 * scale, f"{spec}: bfloat16 autocast strays from float64")


_STATES = {"joints": (4,), "pose": (2, 3)}
_IMAGES = {"left": (48, 48, 3), "right": (96, 48, 3)}


def check_encoder(spec: EncoderSpec, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Declared tokens, dependence on every feature and step, not on the batch; gradients; the state dict; copies.

    In evaluation mode, in float32, also under bfloat16 autocast. A deep copy stands alone; an empty batch passes; and
    all that a call makes is on its device.

    Args:
        spec: The encoder.
        shapes: Its features; by default states, images of two sizes, and both, of which it may refuse some, not all.
    """
    accepted = 0
    for features in (_STATES, _IMAGES, {**_STATES, **_IMAGES}) if shapes is None else (shapes,):
        torch.manual_seed(0)
        try:
            encoder = spec.build(features, 2)
        except ValueError as error:
            require(bool(str(error)), f"{spec}: refuses {features} without a message")
            continue
        accepted += 1
        _check_encoder(spec, encoder.eval(), features)
    require(accepted > 0, f"{spec}: refuses states, images, and both: name its features in shapes")


def _check_encoder(spec: EncoderSpec, encoder: Encoder, shapes: Mapping[str, tuple[int, ...]]) -> None:
    observation = {name: torch.randn(3, 2, *shape) for name, shape in shapes.items()}
    tokens = encoder(observation)
    require(tokens.shape == (3, *encoder.tokens), f"{spec}: tokens {tuple(tokens.shape)}, declared {encoder.tokens}")
    if parameters := {name: p for name, p in encoder.named_parameters() if p.requires_grad}:
        (tokens * torch.randn_like(tokens)).sum().backward()
        idle = [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
        require(not idle, f"{spec}: no gradient reaches {idle}")
    with torch.no_grad():
        for name, values in observation.items():
            for step in range(2):
                moved = values.clone()
                moved[:, step] = torch.randn_like(moved[:, step])
                change = (encoder({**observation, name: moved}) - tokens).flatten(1).norm(dim=1).min()
                require(bool(change > 1e-4), f"{spec}: step {step} of {name!r} does not matter")
        alone = encoder({name: values[1:2] for name, values in observation.items()})
        near(alone, tokens[1:2], 1e-5, f"{spec}: tokens depend on the batch")
        twin = spec.build(shapes, 2).eval()
        twin.load_state_dict(encoder.state_dict())
        require(torch.equal(twin(observation), encoder(observation)), f"{spec}: the state dict is not all")
        _check_copy(spec, encoder, lambda module, move: module({name: move(v) for name, v in observation.items()}))
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(observation)
        near(half.float(), tokens, 0.1 * tokens.abs().max().item(), f"{spec}: bfloat16 autocast strays from float32")


def _check_copy(spec: object, module: nn.Module, call: Callable[[Any, Callable[[Tensor], Tensor]], Tensor]) -> None:
    """A deep copy does not heed its original, and runs on an empty batch and on a device without data."""
    y, twin, state = call(module, torch.clone), copy.deepcopy(module), copy.deepcopy(module.state_dict())
    for parameter in module.parameters():
        parameter.add_(1)
    require(torch.equal(call(twin, torch.clone), y), f"{spec}: a deep copy changes with its original")
    module.load_state_dict(state)
    moves = {"an empty batch": lambda values: values[:0], "another device": lambda values: values.to("meta")}
    for name, move in moves.items():
        try:
            got, expected = call(twin.to(move(y).device), move), move(y)
        except RuntimeError as error:
            raise AssertionError(f"{spec}: fails for {name}: {error}") from error
        require(got.shape == expected.shape, f"{spec}: output {tuple(got.shape)} for {name}")
        require(got.device == expected.device, f"{spec}: output on {got.device} for {name}")


def _randomise(module: nn.Module) -> None:
    """Give layers that start at zero, such as gates, something to pass on."""
    for parameter in module.parameters():
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.1)


__all__ = ["check_encoder", "check_network"]
