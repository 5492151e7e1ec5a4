"""Plans as fast as the hardware allows: a policy whose encoder and network are compiled for good.

Compiling takes the weights for constants: they are packed for the processor once, what depends on them alone is
computed once, and what is small is fused around the matrix products. What is compiled so would not notice another
training step, so `compiled` leaves its policy alone and returns another one.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from poise.nn import Encoder, Network
from poise.policies.diffusion import DiffusionPolicy
from poise.policies.graphs import Graphs
from poise.policies.spec import PolicySpec
from poise.policies.tried import tried
from poise.precision import bfloat16
from poise.typing import Actions, Observation, Times, Tokens

# For the few rows of a plan PyTorch's own C++ templates take half the time of the libraries in float32, where they fit;
# in bfloat16 oneDNN is faster, for it uses the processor's instructions.
_TEMPLATES = {"max_autotune": True, "max_autotune_gemm_backends": "CPP"}
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_WAYS = {torch.float32: (_TEMPLATES, {}), torch.bfloat16: ({},)}


def compiled(
    policy: DiffusionPolicy, batches: Sequence[int] = (1,), weights: torch.dtype = torch.float32
) -> DiffusionPolicy:
    """The same policy, frozen and compiled for plans of some batch sizes; the given one stays as it is.

    It plans from the same noise what the given one plans, up to rounding, under every sampler, grid, guide and warm
    start; `using` keeps it compiled. On a CPU its encoder and its network are compiled, for the threads of that moment,
    which takes a C++ compiler and a minute or more a batch size. On CUDA the whole loop from noise to plan is one CUDA
    graph (see `Graphs`), unless a guide or an adaptive sampler decides on the way. Other batch sizes, and whatever is
    not in inference mode, run eagerly; so does everything where compiling fails or computes other numbers, which is
    said in one line on stderr.

    Args:
        policy: Fitted or loaded.
        batches: Numbers of robots that plan at once.
        weights: Of the network: `torch.float32`, or `torch.bfloat16`, which halves what every evaluation reads, and
            rounds its matrix products to three digits; where the device has no instructions for it, they stay float32,
            and one line on stderr says so.

    Raises:
        ValueError: A feature without statistics, no batch size or one below 1, or weights of another type.
    """
    if not batches or min(batches) < 1 or weights not in _WAYS:
        raise ValueError(
            f"compiled got batches={tuple(batches)} and weights={weights}, expected batch sizes of at least 1, and "
            "torch.float32 or torch.bfloat16"
        )
    policy.ready()
    fast = copy.deepcopy(policy).eval().requires_grad_(False)
    assert isinstance(fast.diffusion.network, Network)
    if not bfloat16(weights == torch.bfloat16, fast.action_normaliser.scale.device):
        weights = torch.float32
    network = fast.diffusion.network = _CompiledNetwork(fast.diffusion.network, weights)
    if fast.action_normaliser.scale.device.type == "cuda":
        fast.loop = Graphs(batches)
        return fast
    encoder = fast.encoder = _CompiledEncoder(fast.encoder)

    def attempt(way: dict[str, Any]) -> None:
        from torch._inductor import config  # a second of imports that only this needs

        with config.patch(way | {"freezing": True}):  # which is no option of `torch.compile`
            for batch in batches:
                tokens = encoder.compile_for(fast.normalised(policy.blank(batch)))
                network.compile_for(batch, policy.spec, tokens)

    if not tried("planning", [partial(attempt, way) for way in _WAYS[weights]]):
        network.forget()
        encoder.forget()
    return fast


class _CompiledNetwork(Network):
    """A network, and its compiled twin for the batches of plans that it was compiled for."""

    def __init__(self, network: Network, weights: torch.dtype) -> None:
        super().__init__()
        self.network, self.weights = network, weights
        self.kind = next(network.parameters()).device.type
        for parameter in network.parameters():
            if parameter.ndim > 1:  # not biases and norms
                parameter.data = parameter.data.to(weights)
        self._fast: dict[int, tuple[Callable[..., Any], Callable[..., Any]]] = {}
        self.register_state_dict_pre_hook(_refuse)

    @torch.inference_mode()
    def compile_for(self, batch: int, spec: PolicySpec, tokens: Tokens) -> None:
        """Compile, and raise RuntimeError where that computes other numbers than the network."""
        self._fast[batch] = prepare, forward = _frozen(self._prepare), _frozen(self._forward)
        draws = torch.Generator().manual_seed(0)
        tokens = torch.randn(tokens.shape, generator=draws)
        for log_snr in (-4.0, 0.0, 4.0):
            x, level = torch.randn(batch, spec.horizon, spec.action, generator=draws), torch.full((batch,), log_snr)
            eager = self._forward(x, level, self._prepare(tokens))
            _agree(forward(x, level, prepare(tokens)), eager, _TOLERANCE[self.weights])

    def forget(self) -> None:
        self._fast.clear()

    def prepare(self, tokens: Tokens) -> Any:
        prepare, _ = self._ways(len(tokens))
        return prepare(tokens.contiguous())

    def forward(self, x: Actions, log_snr: Times, prepared: Any) -> Actions:
        _, forward = self._ways(len(x))
        return forward(x.contiguous(), log_snr, prepared)

    def _ways(self, batch: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
        eager = self._prepare, self._forward
        return self._fast.get(batch, eager) if torch.is_inference_mode_enabled() else eager

    def _prepare(self, tokens: Tokens) -> Any:
        with self._precision():
            return self.network.prepare(tokens)

    def _forward(self, x: Actions, log_snr: Times, prepared: Any) -> Actions:
        with self._precision():
            return self.network(x, log_snr, prepared).to(x.dtype)

    def _precision(self) -> AbstractContextManager:
        return torch.autocast(self.kind, torch.bfloat16, enabled=self.weights == torch.bfloat16)


class _CompiledEncoder(Encoder):
    """An encoder, and its compiled twin for the batches of plans that it was compiled for."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.tokens, self.raw = encoder, encoder.tokens, encoder.raw
        self._fast: dict[int, Callable[..., Any]] = {}
        self.register_state_dict_pre_hook(_refuse)

    @torch.inference_mode()
    def compile_for(self, seen: Observation) -> Tokens:
        """Compile, raise RuntimeError where that computes other numbers than the encoder, and return some tokens."""
        batch = len(next(iter(seen.values())))
        self._fast[batch] = _frozen(self.encoder.forward)
        draws = torch.Generator().manual_seed(0)
        seen = {name: torch.rand(values.shape, generator=draws) for name, values in seen.items()}
        tokens = self._fast[batch](seen)
        _agree(tokens, self.encoder(seen), _TOLERANCE[torch.float32])
        return tokens

    def forget(self) -> None:
        self._fast.clear()

    def forward(self, observation: Observation) -> Tokens:
        batch = len(next(iter(observation.values())))
        run = self._fast.get(batch, self.encoder) if torch.is_inference_mode_enabled() else self.encoder
        return run({name: values.contiguous() for name, values in observation.items()})


def _frozen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at its first call, for shapes that never change: nothing of them is looked at again."""
    settings: dict[str, Any] = {
        "isolate_recompiles": True,  # or the compiled code of another batch would be taken
        "options": {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe},
    }
    return torch.compile(function, fullgraph=True, dynamic=False, **settings)


def _agree(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """No compiler is trusted with a robot unseen."""
    off = float((got - expected).abs().max())
    if not off <= tolerance * (1 + float(expected.abs().max())):
        raise RuntimeError(f"what was compiled computes other numbers, off by {off:.2g}")


def _refuse(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise ValueError(
        "a compiled policy cannot be saved, for its weights may be rounded: save the policy that it was compiled from"
    )


__all__ = ["compiled"]
