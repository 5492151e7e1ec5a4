"""Training by several processes on one or many machines: Hugging Face accelerate on PyTorch's torchrun.

accelerate joins the processes that `torchrun` or `accelerate launch` started, finds their devices and reads the
configuration. Either every process has all parameters (`DistributedDataParallel`), or each of them has a shard of
parameters, moments and average (`fully_shard`, known as FSDP2): with ACCELERATE_USE_FSDP=true and FSDP_VERSION=2 in the
environment, which is what `accelerate config` makes of the answers to its questions.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from poise.extras import extra
from poise.training.processes import Processes, Single

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_Module = TypeVar("_Module", bound=nn.Module)
_WAIT = timedelta(hours=2)  # for the first process, which alone tries the policy in closed loop


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: str) -> Iterator[tuple[Processes, str]]:
    """This process among those that it was started with, and the device of this one.

    Args:
        device: Kind of the device, such as cpu or cuda.

    Raises:
        ImportError: accelerate is missing, and there is more than one process.
        ValueError: A configuration of FSDP that is not supported.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Single(), device
        return
    processes = Distributed(device)
    try:
        yield processes, str(processes.device)
    except SystemExit:  # to which all have agreed; after another error this one must not wait for the rest
        processes.close()
        raise
    processes.close()


class Distributed(Processes):
    """Processes that exchange gradients.

    Args:
        device: Kind of the device, such as cpu or cuda; processes of one machine take one each.

    Attributes:
        device: Of this process.

    Raises:
        ImportError: accelerate is missing.
        ValueError: A configuration of FSDP that is not supported.
    """

    def __init__(self, device: str) -> None:
        library = _library()
        self._sharding = _sharding(library)
        self._accelerator = library.Accelerator(
            cpu=torch.device(device).type == "cpu",
            mixed_precision="no",  # TrainingSpec.bfloat16 says what is computed in which precision
            kwargs_handlers=[
                library.InitProcessGroupKwargs(timeout=_WAIT),
                library.DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device = self._accelerator.device

    def prepare(self, module: nn.Module, optimiser: Optimizer, average: nn.Module) -> nn.Module:
        """The module, wrapped or in shards."""
        if self._sharding is None:
            return self._accelerator.prepare_model(module)
        return self._sharded(module, optimiser, average, self._sharding)

    def _sharded(self, module: nn.Module, optimiser: Optimizer, average: nn.Module, sharding: Any) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor import distribute_tensor

        names = {id(parameter): name for name, parameter in module.named_parameters()}
        mesh = init_device_mesh(self.device.type, (self.count,))
        for part in reversed(_units(module, sharding.transformer_cls_names_to_wrap or ())):
            fully_shard(part, mesh=mesh, reshard_after_forward=sharding.reshard_after_forward)
        fully_shard(module, mesh=mesh)
        shards = {name: cast("DTensor", shard) for name, shard in module.named_parameters()}

        def like(whole: Tensor, shard: "DTensor") -> Tensor:
            return distribute_tensor(whole.detach(), shard.device_mesh, shard.placements) if whole.ndim else whole

        moments = dict(optimiser.state)
        optimiser.state.clear()
        for group in optimiser.param_groups:
            for i, parameter in enumerate(group["params"]):
                shard = group["params"][i] = shards[names[id(parameter)]]
                found = moments.get(parameter, {})
                optimiser.state[shard] = {key: like(value, shard) for key, value in found.items()}
        order = iter(shards.values())
        _exchange(average, lambda parameter: like(parameter, next(order)))
        return module

    def alone(self, module: nn.Module) -> AbstractContextManager:
        """Where gradients stay in the process."""
        if self._sharding is None:
            return self._accelerator.no_sync(module)
        return _unexchanged(module)

    def clip(self, module: nn.Module, most: float) -> Tensor:
        """Clip the gradient, which all processes have or have shards of, to this norm, and its norm before."""
        return self.whole(nn.utils.clip_grad_norm_(module.parameters(), most))

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    def most(self, value: float) -> float:
        """The largest over the processes: how they agree, and wait for each other."""
        largest = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor that shards are of; one that is whole is returned as it is."""
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def gathered(self, module: _Module) -> _Module:
        """A copy of the module with whole parameters, or the module where it has them."""
        if self._sharding is None:
            return module
        found = copy.deepcopy(module)
        _exchange(found, self.whole)
        return found

    def close(self) -> None:
        """Part from the others, when all have finished."""
        self._accelerator.end_training()


def _units(module: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The parts of a module whose parameters are gathered together."""
    known = {type(part).__name__ for part in module.modules()}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"got FSDP_TRANSFORMER_CLS_TO_WRAP={','.join(unknown)}, expected some of {sorted(known)}")
    return [part for part in module.modules() if type(part).__name__ in names]


def _exchange(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Put others in the place of a module's parameters, one after the other."""
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        new = nn.Parameter(change(parameter.detach()), requires_grad=parameter.requires_grad)
        setattr(module.get_submodule(owner), leaf, new)


@contextmanager
def _unexchanged(module: nn.Module) -> Iterator[None]:
    """Where the gradient of a module in shards is summed up in every process."""
    from torch.distributed.fsdp import FSDPModule

    sharded = cast(FSDPModule, module)
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)


def _sharding(library: ModuleType) -> Any:
    """The plugin of accelerate that says how parameters are sharded; None where they are not."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    plugin = library.FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError(f"got FSDP_VERSION={plugin.fsdp_version}, expected 2: set it, or ask accelerate config for it")
    refused = {
        "FSDP_AUTO_WRAP_POLICY=SIZE_BASED_WRAP": plugin.min_num_params is not None,
        "FSDP_ACTIVATION_CHECKPOINTING=true": plugin.activation_checkpointing,
        "FSDP_OFFLOAD_PARAMS=true": os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true",
    }
    if any(refused.values()):
        raise ValueError(
            f"got {', '.join(name for name, asked in refused.items() if asked)}, expected it unset, and "
            "FSDP_AUTO_WRAP_POLICY=NO_WRAP, or TRANSFORMER_BASED_WRAP with the classes of the network's blocks in "
            "FSDP_TRANSFORMER_CLS_TO_WRAP"
        )
    return plugin


def _library() -> ModuleType:
    """The library accelerate, imported when it is first needed."""
    with extra("scale", f"training by {os.environ.get('WORLD_SIZE')} processes needs"):
        import accelerate
    return accelerate


__all__ = ["Distributed", "is_first", "joined"]
