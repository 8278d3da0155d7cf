"""A simulated CUDA device on the CPU: values are real, and the rules of a device, host waits and launches are recorded.

    with sim() as log:
        Training(method, config, data, epochs=2, device="cuda").step()
    print(log.faults, log.waits, log.launches)

Tensors stay ordinary CPU tensors. Which storages lie "on the GPU" is a side table that holds them weakly, so views,
``.data``, tensors saved for backward and in-place operations inherit the place; Python sees ``x.device == cuda:0``.
A `TorchDispatchMode` sees every aten call below autograd, forward and backward. It checks that the devices of the
arguments agree by CUDA's rules (a fault is noted and the call goes on), and counts by the innermost line of this
project:

- launches: calls that are neither views nor allocations;
- host waits: reads of values, ``nonzero`` and its like, boolean masks, copies from pageable memory.

A generator of the device has states of its own size, as CUDA's have. What is told to PyTorch's reserve of memory is
kept (`Log.emptied`, `Log.fraction`).

A CUDA graph (`torch.cuda.graph`) is recorded and replayed as on a device: capturing leaves every value as it was,
refuses what a capture refuses (host waits, so reads of values and results whose size they decide; generators that are
not registered, and their states), and replaying does the same operations on the same memory without Python, one launch
in all.

What it does not simulate: kernels and their arithmetic (autocast to CUDA does nothing here), streams, the size of the
device's memory, and determinism. A factory that is told to make a CPU
tensor from a CUDA one (``zeros_like(x, device="cpu")``) is taken for one that PyTorch itself calls for x's device. One
simulated device at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from trainables import constants

ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(f"{ROOT}/{package}/" for package in ("cluster", "routefront", "search", "spaces", "trainables"))
_CUDA, _CPU = torch.device("cuda", 0), torch.device("cpu")
_PROPERTIES = {"name": "simulated", "total_memory": 80 * 10**9, "major": 9, "minor": 0}

_NO_LAUNCH = frozenset(
    """view _unsafe_view expand permute transpose t slice select unsqueeze squeeze as_strided detach alias split
    split_with_sizes chunk unbind unfold diagonal narrow _reshape_alias view_as_real lift_fresh expand_as empty
    empty_strided empty_like new_empty new_empty_strided _local_scalar_dense is_pinned set_ resize_""".split()
)
"""Views and allocations."""
_WAITS = {
    "nonzero": "nonzero",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "unique_dim_consecutive": "unique",
    "bincount": "bincount",
    "masked_select": "masked_select",
    "_local_scalar_dense": "item",
    "equal": "equal",
    "repeat_interleave": "repeat_interleave(tensor)",
    "multinomial": "multinomial checks its input (2 items)",
}
"""Calls whose result's size or value the host has to know, and what they are called."""
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))
_NO_SCALARS = frozenset(
    """cat stack index_select gather scatter _fused_sgd_ _fused_adam_ convolution mm addmm bmm index_add_ index_copy_
    scatter_reduce linear""".split()
)
"""Calls that take no tensor of the CPU beside CUDA ones, not even one without dimensions."""
TO_DEVICE, TO_HOST = "copy to the device (pageable)", "copy to the host"

Where = tuple[str, str]
"""(what, file:line of this project)."""


def _line() -> str:
    """The innermost line of this project that runs now."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_OURS):
            return f"{name.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


@dataclass(slots=True)
class Log:
    """What was seen since the last `reset`, each by `Where`; `faults` are never reset.

    `launches` by line alone. `doubles`: launches that touch float64, by (operation, line). `emptied`: how often the
    reserve of memory was given back; `fraction`: what it may be of the device's memory.
    """

    waits: Counter[Where] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    doubles: Counter[Where] = field(default_factory=Counter)
    faults: Counter[Where] = field(default_factory=Counter)
    emptied: int = 0
    fraction: float = 1.0

    def wait(self, kind: str) -> None:
        """The host waits for the device; within a capture a device refuses that."""
        if _device.recording is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {kind} at {_line()}")
        if not _device.quiet:
            self.waits[kind, _line()] += 1

    def fault(self, what: str) -> None:
        """On a real device this call would have raised."""
        self.faults[what, _line()] += 1

    def limit(self, fraction: float) -> None:
        """A process may reserve so much of the device's memory."""
        self.fraction = fraction

    def empty(self) -> None:
        """The reserve is given back."""
        self.emptied += 1

    def reset(self) -> None:
        """Forget waits and launches."""
        for counter in (self.waits, self.launches, self.doubles):
            counter.clear()


class _Device:
    """Which storages lie on the simulated device, and its log."""

    def __init__(self) -> None:
        self.log = Log()
        self.quiet = False  # inside what a device does in one copy
        self.recording: _Graph | None = None
        self.calls: list[bool] = []  # of the Python calls that run: whether factories inside them take the device
        self._held: dict[int, StorageWeakRef] = {}
        self._since = 0

    def key(self, tensor: Tensor) -> int | None:
        """What identifies a tensor's storage; None where it has none."""
        try:
            return tensor.untyped_storage()._cdata
        except (NotImplementedError, RuntimeError):
            return None

    def holds(self, tensor: Tensor) -> bool:
        return self.holds_key(self.key(tensor))

    def holds_key(self, key: int | None) -> bool:
        held = self._held.get(key) if key is not None else None
        return held is not None and not held.expired()

    def put(self, tensor: Tensor, here: bool) -> None:
        """Say whether a tensor's storage lies on the device."""
        if self.key(tensor) is not None:
            self.put_storage(tensor.untyped_storage(), here)

    def put_storage(self, storage: torch.UntypedStorage, here: bool) -> None:
        if here:
            self._held[storage._cdata] = StorageWeakRef(storage)
        else:
            self._held.pop(storage._cdata, None)
        self._since += 1
        if self._since % 20_000 == 0:
            self._held = {key: held for key, held in self._held.items() if not held.expired()}


_device = _Device()  # of the `sim` that runs


def _is_cuda(device: Any) -> bool:
    return torch.device(device).type == "cuda"


def _tensors(*given: Any) -> list[Tensor]:
    """The tensors in arguments and results, which are nested lists, tuples and dictionaries at most."""
    found: list[Tensor] = []
    for each in given:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, tuple | list):
            found += _tensors(*each)
        elif isinstance(each, dict):
            found += _tensors(*each.values())
    return found


class _Calls(TorchFunctionMode):
    """Notes which Python call runs: a factory inside a composite or a backward formula takes that call's device.

    Generators are checked here.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        some = any(map(_device.holds, _tensors(args, kwargs)))
        generator = kwargs.get("generator")  # below, PyTorch hands on another object
        if isinstance(generator, _RealGenerator):
            if _device.recording is not None and generator not in _device.recording.generators:
                raise RuntimeError("Attempt to increase offset for a CUDA generator not in capture mode.")
            wanted, found = (_is_cuda(asked) if asked is not None else some), _is_cuda(generator.device)
            if wanted != found:
                kind = "a generator of cuda" if wanted else "a generator of the cpu"
                _device.log.fault(
                    f"{getattr(func, '__name__', func)}: expected {kind}, found one of {generator.device.type}"
                )
        _device.calls.append(asked is None and some)
        try:
            return func(*args, **kwargs)
        finally:
            _device.calls.pop()


class _Rules(TorchDispatchMode):
    """Sees every aten call: checks its devices, notes waits and launches, and puts the results where they belong."""

    def __init__(self) -> None:
        super().__init__()
        self._composite: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = _tensors(args, kwargs)
        if torch.is_inference_mode_enabled() and self._is_composite(func):  # what autograd would have taken apart
            _device.calls.append(kwargs.get("device") is None and any(map(_device.holds, tensors)))
            try:
                with self:
                    found = func.decompose(*args, **kwargs)
            finally:
                _device.calls.pop()
            if found is not NotImplemented:
                return found
        name = func._schema.name.split("::")[1]
        there = [tensor for tensor in tensors if _device.holds(tensor)]
        here = [tensor for tensor in tensors if not _device.holds(tensor)]
        asked = kwargs.get("device")
        device = _placed(name, asked, tensors, there)
        if asked is not None:
            kwargs["device"] = _CPU
        if there and here and (asked is None or name == "_to_copy"):
            device = _agreed(name, args, here, device)
        if there:
            _noted(func, name, args, tensors)
        if _device.recording is not None and (there or device):
            _device.recording.before(tensors)
        result = func(*args, **kwargs)
        known = {id(tensor) for tensor in tensors}
        storages = {_device.key(tensor) for tensor in tensors}
        for output in _tensors(result):
            if id(output) not in known and (_device.key(output) not in storages or name == "_to_copy"):
                _device.put(output, device)  # else a view
        if _device.recording is not None and (there or device):
            _device.recording.record(func, args, kwargs, result)
        if device and not _device.quiet and name not in _NO_LAUNCH and name.rstrip("_") not in _NO_LAUNCH:
            _device.log.launches[_line()] += 1
        return result

    def _is_composite(self, func: Any) -> bool:
        if func not in self._composite:
            key = "CompositeImplicitAutograd"
            self._composite[func] = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
        return self._composite[func]


def _placed(name: str, asked: Any, tensors: Sequence[Tensor], there: Sequence[Tensor]) -> bool:
    """Whether a call's results lie on the device."""
    if asked is None or name == "_to_copy":  # Python's conversions go through `_to`: what comes here stays
        return bool(there)
    if _is_cuda(asked):
        return True
    inside = bool(_device.calls) and _device.calls[-1]
    return bool(there) if tensors else inside  # C++ asked for "the device of self"


def _agreed(name: str, args: Any, here: Sequence[Tensor], device: bool) -> bool:
    """Check a call whose tensors lie on both; whether its results lie on the device."""
    log = _device.log
    if name == "copy_":
        device = _device.holds(args[0])
        log.wait(TO_DEVICE if device else TO_HOST)
    elif name in _INDEXING:
        device = _device.holds(args[0])
        indices = [index for index in args[1] if index is not None]
        if not device:
            log.fault(f"{name}: indices on cuda of a tensor on the cpu")
        elif any(isinstance(v, Tensor) and v.dim() and not _device.holds(v) for v in args[2:]):
            log.fault(f"{name}: values on the cpu for a tensor on cuda")
        if device and not all(map(_device.holds, indices)):
            log.wait(f"{TO_DEVICE} of an index")
    elif name.startswith("_foreach"):
        log.fault(f"{name}: tensors on cuda and on the cpu")
    elif name in _NO_SCALARS or any(tensor.dim() for tensor in here):
        log.fault(f"{name}: expected all tensors on one device, found cuda and cpu")
    return device


def _noted(func: Any, name: str, args: Any, tensors: Sequence[Tensor]) -> None:
    """Note what a call on the device makes the host wait for, and float64."""
    log = _device.log
    if func.namespace == "mkldnn":
        log.fault(f"mkldnn::{name}: takes no tensors of cuda")
    if _device.quiet:
        return
    plain = name if name.startswith("_") else name.rstrip("_")
    if plain in _WAITS:
        log.wait(_WAITS[plain])
    elif name in _INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        log.wait("boolean mask (nonzero)")
    if any(tensor.dtype == torch.float64 for tensor in tensors) and name not in _NO_LAUNCH:
        log.doubles[name, _line()] += 1


# -- what Python calls directly -------------------------------------------------------------------

_real: dict[str, Any] = {
    name: getattr(Tensor, name) for name in ("to", "numpy", "tolist", "new_tensor", "__array__", "device")
}
_real_tensor, _real_from_numpy, _RealGenerator = torch.tensor, torch.from_numpy, torch.Generator


_LONGER = 16
"""Bytes by which a state of the device's generator is longer than one of the CPU's: none fits the other."""


class Simulated(_RealGenerator):
    """A generator that says that it is on the device."""

    _place: torch.device

    def __new__(cls, device: Any = "cpu") -> Simulated:
        made = _RealGenerator.__new__(cls)
        made._place = _CUDA if _is_cuda(device) else torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._place

    def get_state(self) -> Tensor:
        self._refuse()
        state = super().get_state()
        return torch.cat([state, state.new_zeros(_LONGER)]) if _is_cuda(self._place) else state

    def graphsafe_get_state(self) -> Simulated:
        """As PyTorch's: a generator that stands for the state."""
        return self

    def graphsafe_set_state(self, state: torch.Generator) -> Simulated:
        """As PyTorch's."""
        return self.set_state(state.get_state())

    def _refuse(self) -> None:
        if _device.recording is not None:
            raise RuntimeError("Cannot call the state of a CUDA generator during graph capture")

    def set_state(self, new_state: Tensor) -> Simulated:
        self._refuse()
        if _device.holds(new_state):
            _device.log.fault("Generator.set_state: takes a tensor of the cpu")
        if _is_cuda(self._place):
            if len(new_state) != len(self.get_state()):
                raise RuntimeError("RNG state is wrong size")
            new_state = new_state[:-_LONGER].clone()
        super().set_state(new_state)
        return self


def _to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device, dtype, flags = kwargs.pop("device", None), kwargs.pop("dtype", None), []
    kwargs.pop("non_blocking", None)
    copy, layout = kwargs.pop("copy", False), kwargs.pop("memory_format", None)
    for given in args:
        if isinstance(given, torch.device | str | int) and not isinstance(given, bool):
            device = torch.device("cuda", given) if isinstance(given, int) else torch.device(given)
        elif isinstance(given, Tensor):
            device, dtype = given.device, given.dtype
        elif isinstance(given, torch.dtype):
            dtype = given
        elif isinstance(given, bool):
            flags.append(given)
    copy = flags[1] if len(flags) > 1 else copy
    before = _device.holds(self)
    after = before if device is None else _is_cuda(device)
    more = {} if layout is None else {"memory_format": layout}
    moved = _real["to"](self, dtype or self.dtype, copy=copy or after != before, **more)
    if after != before:
        _device.log.wait(TO_DEVICE if after else TO_HOST)
        _device.put(moved, after)
    return moved


def _cpu(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _to(self, "cpu") if _device.holds(self) else self


def _cuda(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _to(self, "cuda")


def _device_of(self: Tensor) -> torch.device:
    return _CUDA if _device.holds(self) else _real["device"].__get__(self)


def _numpy(self: Tensor, *args: Any, **kwargs: Any) -> Any:
    if _device.holds(self):
        _device.log.fault("numpy(): cannot convert a tensor of cuda")
    with torch._C.DisableTorchFunction():
        return _real["numpy"](self, *args, **kwargs)


def _array(self: Tensor, *args: Any, **kwargs: Any) -> Any:
    if _device.holds(self):
        _device.log.fault("__array__: cannot convert a tensor of cuda")
    with torch._C.DisableTorchFunction():
        return _real["__array__"](self, *args, **kwargs)


def _tolist(self: Tensor) -> Any:
    if _device.holds(self):
        _device.log.wait("tolist")
    with torch._C.DisableTorchFunction():
        return _real["tolist"](self)


def _tensor(data: Any, *args: Any, **kwargs: Any) -> Tensor:
    device = kwargs.pop("device", None)
    made = _real_tensor(data, *args, **kwargs)
    there = device is not None and _is_cuda(device)
    if there:
        _device.log.wait("torch.tensor(list, device=cuda)")
    _device.put(made, there)
    return made


def _new_tensor(self: Tensor, data: Any, *args: Any, **kwargs: Any) -> Tensor:
    there = _device.holds(self)
    with torch._C.DisableTorchFunction():
        made = _real["new_tensor"](self, data, *args, **kwargs)
    if there:
        _device.log.wait("new_tensor(list) on cuda")
    _device.put(made, there)
    return made


def _from_numpy(array: Any) -> Tensor:
    made = _real_from_numpy(array)
    _device.put(made, False)
    return made


def _cloning(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A storage's `clone` whose copy lies where the original does."""

    def clone(self: Any) -> Any:
        quiet, _device.quiet = _device.quiet, True
        try:
            made = real(self)
        finally:
            _device.quiet = quiet
        _device.put_storage(made, _device.holds_key(self._cdata))
        return made

    return clone


_optimiser = importlib.import_module("torch.optim.optimizer")  # torch.optim hides its name
_GROUP = "_group_tensors_by_device_and_dtype"


def _grouped(real: Callable[..., dict[Any, Any]]) -> Callable[..., dict[Any, Any]]:
    """How optimisers group tensors, which C++ does by the device that it sees."""

    def group(*args: Any, **kwargs: Any) -> dict[Any, Any]:
        found = real(*args, **kwargs)
        held = {key: any(map(_device.holds, _tensors(lists))) for key, (lists, _) in found.items()}
        return {(_CUDA if held[key] else key[0], key[1]): value for key, value in found.items()}

    return group


def _backward(real: Callable[..., Any]) -> Callable[..., Any]:
    """The engine of autograd: factories inside backward formulas take the outputs' device."""

    def run(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        _device.calls.append(any(map(_device.holds, outputs)))
        try:
            return real(outputs, *args, **kwargs)
        finally:
            _device.calls.pop()

    return run


class _Graph:
    """A CUDA graph: what was done on the device within `_capture`, to be done again on the same memory."""

    def __init__(self) -> None:
        self.generators: list[Simulated] = []
        self._calls: list[tuple[Any, Any, Any, Any]] = []
        self._kept: list[Any] = []  # the graph's own memory: whatever it has made, as long as it lives
        self._own: set[int | None] = set()
        self._was: dict[int | None, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._states: list[Tensor] = []

    def register_generator_state(self, generator: Simulated) -> None:
        """Draws from this generator may be captured."""
        self.generators.append(generator)

    def begin(self) -> None:
        """Capturing begins."""
        self._states = [generator.get_state() for generator in self.generators]
        _device.recording = self

    def end(self) -> None:
        """Capturing ends: nothing has been done so far."""
        _device.recording = None
        with _disable_current_modes():
            for storage, was in self._was.values():
                storage.copy_(was)
        self._was.clear()
        for generator, state in zip(self.generators, self._states, strict=True):
            generator.set_state(state)

    def before(self, tensors: Sequence[Tensor]) -> None:
        """These tensors are about to be used: what is in memory that is not the graph's is kept until the end."""
        for tensor in tensors:
            key = _device.key(tensor)
            if key is not None and key not in self._own and key not in self._was:
                storage = tensor.untyped_storage()
                copied = torch.UntypedStorage(storage.nbytes())
                with _disable_current_modes():
                    copied.copy_(storage)
                self._was[key] = storage, copied

    def record(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """A call was made."""
        before = {_device.key(tensor) for tensor in _tensors(args, kwargs)}
        fresh = {_device.key(tensor) for tensor in _tensors(result)} - before
        self._own |= fresh
        self._kept.append((args, kwargs, result))
        writes = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
        if fresh or writes:  # else a view
            self._calls.append((func, args, kwargs, result))

    @torch.no_grad()
    def replay(self) -> None:
        """Do all of it again."""
        _device.log.launches[_line()] += 1
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            for func, args, kwargs, result in self._calls:
                given = {id(tensor) for tensor in _tensors(args, kwargs)}
                again = func(*args, **kwargs)
                for new, kept in zip(_tensors(again), _tensors(result), strict=True):
                    if id(kept) not in given:
                        if new.shape != kept.shape:
                            raise RuntimeError(f"{func}: {tuple(kept.shape)} was captured, {tuple(new.shape)} came")
                        kept.detach().copy_(new)


class _capture:
    """`torch.cuda.graph`."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def __enter__(self) -> None:
        self._graph.begin()

    def __exit__(self, *_: object) -> None:
        self._graph.end()


class _Stream:
    """One stream after another is all there is here."""

    def wait_stream(self, other: _Stream) -> None:
        """Nothing runs beside."""


@contextlib.contextmanager
def sim() -> Iterator[Log]:
    """A CUDA device for what runs inside; its log. Behind it PyTorch is as it was."""
    global _device
    _device = _Device()
    log = _device.log
    engine = _backward(torch.autograd.graph._engine_run_backward)
    storage = torch.storage._StorageBase
    changes: list[tuple[Any, str, Any]] = [
        *((Tensor, name, new) for name, new in (("to", _to), ("cpu", _cpu), ("cuda", _cuda), ("numpy", _numpy))),
        *((Tensor, name, new) for name, new in (("tolist", _tolist), ("new_tensor", _new_tensor))),
        (Tensor, "__array__", _array),
        (Tensor, "device", property(_device_of)),
        (Tensor, "is_cuda", property(lambda self: _device.holds(self))),
        (Tensor, "is_cpu", property(lambda self: not _device.holds(self))),
        (torch, "tensor", _tensor),
        (torch, "from_numpy", _from_numpy),
        (torch, "Generator", Simulated),
        (storage, "clone", _cloning(storage.clone)),
        (torch.cuda, "_lazy_init", lambda: None),
        (torch.cuda, "is_available", lambda: True),
        (torch.cuda, "is_initialized", lambda: True),
        (torch.cuda, "empty_cache", log.empty),
        (torch.cuda, "set_per_process_memory_fraction", lambda fraction, device=None: log.limit(fraction)),
        (torch.cuda, "get_device_properties", lambda device=None: SimpleNamespace(**_PROPERTIES)),
        (torch.cuda, "max_memory_allocated", lambda device=None: 0),
        (torch.cuda, "reset_peak_memory_stats", lambda device=None: None),
        (torch.cuda, "CUDAGraph", _Graph),
        (torch.cuda, "graph", _capture),
        (torch.cuda, "Stream", _Stream),
        (torch.cuda, "current_stream", lambda device=None: _Stream()),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
        (torch.cuda, "device_count", lambda: 1),
        (torch.cuda, "synchronize", lambda *_: log.wait("cuda.synchronize")),
        (torch.accelerator, "synchronize", lambda *_: log.wait("accelerator.synchronize")),
        (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None),
        (_optimiser, _GROUP, _grouped(getattr(_optimiser, _GROUP))),
        (torch.autograd.graph, "_engine_run_backward", engine),
        (torch.autograd, "_engine_run_backward", engine),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, new in changes:
            stack.enter_context(patch.object(owner, name, new))
        constants.forget()  # they lie on the device of another `sim`, or on none
        stack.callback(constants.forget)
        stack.enter_context(_Calls())
        stack.enter_context(_Rules())
        yield log
