"""A network in training: what DDP or DeepSpeed holds of it, and the classifier's share that it does not."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.checkpoint import classifier as classifier_files
from pipeline.model import HSTL
from pipeline.model.sharded_classifier import ShardedClassifier
from pipeline.recipe import Optimizer

if TYPE_CHECKING:
    from accelerate import Accelerator


class Trained:
    """A network prepared for training by all processes; the same steps under every launch file."""

    def __init__(
        self, accelerator: "Accelerator", network: HSTL, optimizer: Optimizer, *, shard_classifier: bool = False
    ) -> None:
        self.accelerator = accelerator
        self.classifier: ShardedClassifier | None = None
        self.classifiers_optimizer: torch.optim.Optimizer | None = None
        if shard_classifier:
            share = ShardedClassifier(network, accelerator.process_index, accelerator.num_processes)
            self.classifier = share.to(accelerator.device)
            self.classifiers_optimizer = build_optimizer(self.classifier, optimizer)
        self.gradients = GradientCheck(network, *filter(None, [self.classifier]))
        # DDP and DeepSpeed wrap this optimizer; it is the one that takes the steps.
        self._innermost = build_optimizer(network, optimizer)
        self.model, self.optimizer = accelerator.prepare(network, self._innermost)
        self.model.train()

    def set_learning_rate(self, rate: float) -> None:
        """For the next update."""
        for optimizer in filter(None, (self.optimizer, self.classifiers_optimizer)):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def learning_rate(self) -> float:
        """Of the last update, as the optimizer that made it has it: not what was asked for, should the two differ."""
        return float(self._innermost.param_groups[0]["lr"])

    def backward(self, loss: Tensor) -> None:
        """Gradients, and no update: Accelerate's own `backward` would update at once under DeepSpeed."""
        if (engine := self._engine()) is None:
            self.accelerator.backward(loss)
        else:
            engine.set_gradient_accumulation_boundary(is_boundary=True)
            engine.backward(loss)

    def update(self) -> None:
        """The optimizer's step by the gradients of `backward`, which are gone then."""
        if (engine := self._engine()) is None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            engine.step()
        if self.classifiers_optimizer is not None:
            self.classifiers_optimizer.step()
            self.classifiers_optimizer.zero_grad()

    def full_state(self, folder: Path) -> dict[str, Tensor]:
        """All weights, on the main process; every process must call it. A sharded classifier goes through `folder`."""
        plugin = self.accelerator.state.deepspeed_plugin
        collective = plugin is not None and plugin.zero_stage == 3
        tensors: dict[str, Tensor] = {}
        if collective or self.accelerator.is_main_process:
            tensors = self.accelerator.get_state_dict(self.model) or {}
        if self.classifier is not None and self.classifiers_optimizer is not None:
            place = self.accelerator.process_index, self.accelerator.num_processes
            classifier_files.write(folder, self.classifier, self.classifiers_optimizer, *place)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                tensors = {**tensors, "classifier.weight": classifier_files.joined(folder, self.classifier.num_classes)}
        return tensors

    def network(self) -> HSTL:
        """The network itself, out of what wraps it."""
        return self.accelerator.unwrap_model(self.model)

    def _engine(self) -> Any:
        """DeepSpeed's, or None; the attribute is there only where Accelerate knows that DeepSpeed is asked for."""
        wrapped = getattr(self.accelerator, "deepspeed_engine_wrapped", None)
        return None if wrapped is None else wrapped.engine


class GradientCheck:
    """Which gradients of one process were not finite in its last backward pass, before any exchange of gradients.

    After the exchange a NaN is everywhere; here it still says whose it is. To be made before the networks are prepared.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self._sums: dict[str, Tensor] = {}
        for network in networks:
            for name, parameter in network.named_parameters():
                parameter.register_hook(partial(self._note, name))

    def _note(self, name: str, gradient: Tensor) -> None:
        self._sums[name] = gradient.sum()  # infinite or NaN as soon as one element is; read on the device, no wait

    def broken(self) -> Tensor:
        """Whether one was not finite; bool, a scalar on the gradients' device."""
        return ~torch.stack(list(self._sums.values())).isfinite().all()

    def names(self) -> list[str]:
        """Of the parameters whose gradients were not finite."""
        return [name for name, total in self._sums.items() if not total.isfinite()]


def build_optimizer(network: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """The recipe's optimizer over all parameters."""
    parameters, lr, decay = network.parameters(), optimizer.lr, optimizer.weight_decay
    # Not torch's fused updates: they round by where an element lies, which ZeRO decides, for 1.5 % of a step.
    if optimizer.kind == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=lr, weight_decay=decay, momentum=optimizer.momentum)
