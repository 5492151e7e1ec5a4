"""What a training changes: the policy, its running average, the optimiser's moments and the clock."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poise.policies import Policy
from poise.training.ema import EMA
from poise.training.processes import Processes, Single
from poise.training.spec import TrainingSpec

_RANDOM = "random"


class Learner:
    """A policy in training.

    Args:
        policy: Fitted policy; its parameters are changed.
        spec: How it is trained.
        processes: Those that share the training; None is one.

    Attributes:
        policy: The policy.
        spec: How it is trained.
        processes: Those that share the training.
        average: The running average of the policy; take it by `averaged`.
        optimiser: AdamW.
        step: Steps done.
        seconds: Spent on them.

    Raises:
        ValueError: A feature without statistics.
    """

    def __init__(self, policy: Policy, spec: TrainingSpec, processes: Processes | None = None) -> None:
        policy.ready()
        self.policy, self.spec, self.processes = policy, spec, processes or Single()
        self.average = EMA(policy, spec.ema_power, spec.ema_maximum)
        self.optimiser = torch.optim.AdamW(
            policy.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=spec.betas, fused=True
        )
        self.step, self.seconds = 0, 0.0

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.policy.action_normaliser.scale.device

    def averaged(self) -> Policy:
        """The averaged policy, which is validated, saved and deployed; every process must ask for it."""
        return self.processes.gathered(self.average.policy)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on but the average and the counts: what a resume needs, bit by bit.

        They are the parameters and buffers of the policy, two moments and a count of steps a parameter, and the states
        of PyTorch's global generators, which dropout draws from. Every process must ask, and the first one gets them.
        """
        found = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        for name, parameter in self.policy.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                found[f"optimiser.{name}.{key}"] = value
        for name in tuple(found):
            whole = self.processes.whole(found.pop(name))
            if self.processes.rank == 0:
                found[name] = whole
        found[f"{_RANDOM}.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            found[f"{_RANDOM}.cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def counts(self) -> dict[str, Any]:
        """The numbers that go with `tensors`."""
        return {"step": self.step, "seconds": self.seconds, "updates": self.average.updates}

    def restore(self, tensors: Mapping[str, Tensor], average: Mapping[str, Tensor], counts: Mapping[str, Any]) -> None:
        """Go on from what `tensors`, the average's state and `counts` were, whatever the number of processes then.

        It comes before the training, on every process.

        Raises:
            RuntimeError: Tensors of another policy.
        """
        self.policy.load_state_dict(_under(tensors, "policy."))
        self.average.policy.load_state_dict(average)
        for name, parameter in self.policy.named_parameters():
            moments = _under(tensors, f"optimiser.{name}.")
            if moments:
                self.optimiser.state[parameter] = {
                    key: value.clone().to("cpu" if value.ndim == 0 and self.device.type == "cpu" else self.device)
                    for key, value in moments.items()
                }
        torch.set_rng_state(tensors[f"{_RANDOM}.cpu"])
        if f"{_RANDOM}.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"{_RANDOM}.cuda"], self.device)
        self.step, self.seconds, self.average.updates = counts["step"], counts["seconds"], counts["updates"]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


__all__ = ["Learner"]
