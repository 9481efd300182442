"""Copies of a model for ``nn.DataParallel``, with their adapters.

``nn.DataParallel`` copies every module shallowly on every call: the hooks of such a copy belong to the original, and so
would what they run. So the copy of a model with a panel runs a deep copy of it, made when it is called, whose
parameters are those that DataParallel has sent to the copy's device. Gradients flow back to the original's.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

from adaptergit.errors import UsageError

_METHOD = "_replicate_for_data_parallel"


class Replicate:
    """Stands in for the method that ``nn.DataParallel`` calls; an object, so that copies of the model get their own."""

    def __init__(self, model: nn.Module, engine: Any) -> None:
        self.model, self.engine = model, engine

    @classmethod
    def install(cls, model: nn.Module, engine: Any) -> None:
        """Let a model be replicated."""
        vars(model)[_METHOD] = cls(model, engine)

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Leave the model as it was."""
        vars(model).pop(_METHOD, None)

    def __call__(self) -> nn.Module:
        """Return a replica.

        Raises:
            UsageError: ``panel.using()`` is in use: the threads of DataParallel would not see it.
        """
        if self.engine.overridden:
            raise UsageError("using() does not reach the threads of nn.DataParallel", hint="panel.activate() does")
        replica: nn.Module = getattr(type(self.model), _METHOD)(self.model)
        own = vars(replica)
        # The deep copy has them; the replica only passes its call on.
        own |= {name: OrderedDict() for name, value in own.items() if isinstance(value, dict) and "hooks" in name}
        own["forward"] = _Forward(self.model, replica)
        return replica


class _Forward:
    def __init__(self, model: nn.Module, replica: nn.Module) -> None:
        self.model, self.replica = model, replica

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tensors: dict[int, Any] = {}
        _pair(self.model, self.replica, tensors)
        device = next(iter(tensors.values())).device
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            # What rides along is no submodule, so DataParallel has not put its copies where they could be found.
            if id(tensor) not in tensors:
                tensors[id(tensor)] = tensor.to(device)
        return copy.deepcopy(self.model, tensors)(*args, **kwargs)


def _pair(original: nn.Module, replica: nn.Module, found: dict[int, Any]) -> None:
    """Collect a replica's tensors under the identities of the original's."""
    for name, tensor in (*original._parameters.items(), *original._buffers.items()):
        if tensor is not None:
            found[id(tensor)] = getattr(replica, name)
    for name, module in original._modules.items():
        if module is not None:
            _pair(module, getattr(replica, name), found)
