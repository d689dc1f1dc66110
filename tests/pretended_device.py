"""A pretended accelerator for machines that have none: where tensors live is checked, neither speed nor kernels.

Its tensors say that they live on another device, compute on the CPU, and refuse to meet a CPU tensor of a dimension or
more, as a real device does. What reads a value back (`.item()`, `bool(tensor)`, `.tolist()`), which stalls a real one,
is counted with the place in the code:

    with PretendedDevice() as device:
        model = on_device(model)
        model(**{name: on_device(tensor) for name, tensor in inputs.items()})
    device.reads  # {("item", "hf_ravlm/model/reader/reading.py:80"): 3}
"""

from __future__ import annotations

import collections
import traceback

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map


DEVICE = torch.device("lazy", 0)  # the one other device that a CPU build can name in a tensor
aten = torch.ops.aten
READS = {aten._local_scalar_dense.default: "item", aten.nonzero.default: "nonzero", aten.equal.default: "equal"}
INDEXING = {
    *(aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default),
    aten._unsafe_index.Tensor,
}
MOVES = ("_to_copy", "copy_", "_copy_from", "set_", "to", "copy")
_active: list[PretendedDevice] = []


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device; `inner` is what it computes with."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "layout": inner.layout}
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, device=DEVICE, requires_grad=inner.requires_grad, **layout
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"DeviceTensor({self.inner!r})"

    def tolist(self):
        note("tolist")
        return self.inner.tolist()

    def numpy(self, *_, **__):
        raise TypeError("a tensor on a device is no array of NumPy; use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def note(what: str) -> None:
    """Counts a value that is read back, by the last place in transformers or in our code."""
    if _active:
        frames = [f.filename for f in traceback.extract_stack()]
        places = [f for f in traceback.extract_stack() if "/hf_ravlm/" in f.filename or "/transformers/" in f.filename]
        place = places[-1] if frames and places else None
        where = "?" if place is None else f"{_short(place.filename)}:{place.lineno}"
        _active[-1].reads[what, where] += 1


def _short(path: str) -> str:
    return path.rpartition("site-packages/")[2].rpartition("/src/")[2]


def run(func, args, kwargs):
    """Computes on the CPU what is asked of the device, and refuses what a device would."""
    with torch.inference_mode(False):  # whose tensors cannot be wrapped
        return _run(func, args, kwargs)


def _run(func, args, kwargs):
    flat, _ = tree_flatten((args, kwargs))
    ours = [value for value in flat if isinstance(value, DeviceTensor)]
    wanted, name = kwargs.get("device"), func.overloadpacket.__name__
    if func in READS:
        note(READS[func])
    if ours and name not in MOVES and not name.startswith("_foreach_copy"):
        _refuse_mixed(func, args, flat)
    on_device = bool(ours) if wanted is None else is_device(wanted)
    if name == "copy_":
        on_device = isinstance(args[0], DeviceTensor)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_plain, args), tree_map(_plain, kwargs)
    result = func(*plain_args, **plain_kwargs)
    if name == "_to_copy" and ours and not on_device:
        note("to_cpu")
        return result.clone() if result is plain_args[0] else result
    if not on_device or (func in READS and func is not aten.nonzero.default):
        return result
    known = {id(value.inner): value for value in ours}  # what was changed in place is the same tensor
    return tree_map(lambda value: known.get(id(value), _wrapped(value)), result)


def _refuse_mixed(func, args, flat) -> None:
    strangers = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor)]
    wrong = [value for value in strangers if value.dim() > 0]
    if func in INDEXING:  # indices may be on the CPU
        wrong = [value for value in wrong if value.dtype not in (torch.long, torch.int, torch.bool, torch.uint8)]
        wrong = wrong if isinstance(args[0], DeviceTensor) else strangers or [args[0]]
    if wrong:
        shapes = [tuple(value.shape) for value in wrong]
        raise RuntimeError(f"{func}: tensors on the device came with others on the CPU, of the shapes {shapes}")


def _plain(value):
    return value.inner if isinstance(value, DeviceTensor) else value


def _wrapped(value):
    is_plain = isinstance(value, torch.Tensor) and not isinstance(value, DeviceTensor)
    return DeviceTensor(value) if is_plain else value


def _indices(value):
    if isinstance(value, tuple):
        return tuple(map(_indices, value))
    return torch.tensor(value) if isinstance(value, list) else value


def is_device(device) -> bool:
    """Whether something names the pretended device."""
    return isinstance(device, (str, torch.device)) and str(device).startswith(DEVICE.type)


class Factories(TorchFunctionMode):
    """What names the device before anything is dispatched: new tensors, and moves."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "to" and args and isinstance(args[0], torch.Tensor):
            return self._moved(func, args, kwargs)
        if name in ("__getitem__", "__setitem__"):  # lists of places become indices on the CPU, which may meet
            args = (args[0], _indices(args[1]), *args[2:])
        if name == "new_tensor" and isinstance(args[0], DeviceTensor):
            return DeviceTensor(args[0].inner.new_tensor(*args[1:], **{**kwargs, "device": None}))
        mixed = any(isinstance(value, DeviceTensor) for value in tree_flatten((args, kwargs))[0])
        if is_device(kwargs.get("device")) and not mixed:
            return tree_map(_wrapped, func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)

    def _moved(self, func, args, kwargs):
        other = next((value for value in args[1:] if isinstance(value, torch.Tensor)), kwargs.get("other"))
        named = next((value for value in args[1:] if isinstance(value, (str, torch.device))), kwargs.get("device"))
        if not is_device(named if other is None else other.device):
            return func(*args, **kwargs)
        dtype = next((value for value in args[1:] if isinstance(value, torch.dtype)), kwargs.get("dtype"))
        dtype = dtype if other is None else other.dtype
        tensor = args[0] if isinstance(args[0], DeviceTensor) else _moved(args[0])
        return tensor if dtype is None else tensor.to(dtype=dtype)


def _moved(tensor):
    if not torch.is_inference_mode_enabled():
        return Move.apply(tensor)
    with torch.inference_mode(False):
        return DeviceTensor(tensor.clone())


class Move(torch.autograd.Function):
    """From the CPU to the device, and gradients back."""

    @staticmethod
    def forward(ctx, tensor):
        return DeviceTensor(tensor.detach())

    @staticmethod
    def backward(ctx, grad):
        return _plain(grad)


class PretendedDevice(TorchDispatchMode):
    """While it is entered, the pretended device is there; `reads` counts what was read back from it."""

    def __init__(self):
        super().__init__()
        self.reads = collections.Counter()
        self.factories = Factories()

    def __enter__(self):
        _active.append(self)
        entered = super().__enter__()
        self.factories.__enter__()
        return entered

    def __exit__(self, *error):
        self.factories.__exit__(*error)
        _active.pop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def of_ours(self) -> int:
        """How many values our own code read back."""
        return sum(number for (_, where), number in self.reads.items() if where.startswith("hf_ravlm/"))


def on_device(thing):
    """A tensor, or a module with all its weights, on the pretended device."""
    if isinstance(thing, torch.Tensor):
        return DeviceTensor(thing)
    moved: dict[int, torch.Tensor] = {}
    for module in thing.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None and not isinstance(value, DeviceTensor):
                    if id(value) not in moved:
                        wrapped = DeviceTensor(value.detach())
                        is_weight = isinstance(value, torch.nn.Parameter)
                        moved[id(value)] = (
                            torch.nn.Parameter(wrapped, requires_grad=value.requires_grad) if is_weight else wrapped
                        )
                    table[name] = moved[id(value)]
    return thing
