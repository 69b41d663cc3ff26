"""A GPU that is not there: tensors that say device "cuda:0" (or "mps:0"), are computed on the CPU, and refuse to be mixed.

    with pretend_gpu.Device("cuda") as gpu:      # cli.device(0) is cuda:0 inside
        ...                                      # any code of this project
    gpu.peak                                     # most bytes alive on the pretended device at once

    pretend_gpu.Device("cuda", memory=2 << 30)   # a card of 2 GiB: torch.OutOfMemoryError beyond

A tensor made on, or moved to, the device is a `Pretended`, a wrapper subclass with its numbers in a CPU tensor; like
torch's FakeTensor it lies on the CPU for C++ and elsewhere for Python, so neither a driver nor a CUDA build is needed.
Every aten operation goes through `_run`: a plain CPU tensor of one dimension or more beside a Pretended raises, as do
numpy(), np.asarray, a CPU generator for a draw on the device, and float64 on mps. What CUDA allows passes: 0-dim CPU
tensors, CPU indices into device tensors, copies. Real numbers come out, so data-dependent code (ridge, schedulers,
beam search) runs to its end, and its results can be compared with the CPU's.

Bytes are those of tensors: what kernels of a real card take as workspace, and what its allocator keeps, is not counted.
Autocast does nothing here, as the tensors lie on the CPU for C++.
"""
import contextlib
import weakref
from unittest import mock

import torch
import torch._dynamo  # imported later, it would look at what is patched here
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put_.default, aten.index_put.default,
            aten._index_put_impl_.default}
RANDOM = ("rand", "normal", "bernoulli", "multinomial", "uniform", "exponential")
CURRENT = []  # the Device that is entered


class Mixed(RuntimeError):
    """What CUDA would refuse."""


class Pretended(torch.Tensor):
    """A tensor on the pretended device. inner: the CPU tensor with its numbers."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="cpu", requires_grad=False)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CURRENT[-1].device if CURRENT else torch.device("cuda", 0))
    is_cuda = property(lambda self: self.device.type == "cuda")
    is_mps = property(lambda self: self.device.type == "mps")
    is_cpu = property(lambda self: False)

    def __repr__(self, **_):
        return f"Pretended({tuple(self.shape)}, {self.dtype}, {self.device})"

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy it first")

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        return self.inner.tolist()

    def to(self, *args, **options):
        return _to(self, args, options)

    def cpu(self, *_, **__):
        return _to(self, ("cpu",), {})

    def cuda(self, *_, **__):
        return self

    def type_as(self, other):
        return _to(self, (other,), {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), options=None):
        return _run(function, args, options or {})


def _to(tensor, args, options):
    """Tensor.to of a plain or a pretended tensor, where either side is the device."""
    options = dict(options)
    device, dtype = options.pop("device", None), options.pop("dtype", None)
    other = options.pop("other", None)
    for each in args:
        if isinstance(each, torch.Tensor):
            other = each
        elif isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, (str, torch.device)):
            device = each
    if other is not None:
        device, dtype = other.device, other.dtype
    ours = isinstance(tensor, Pretended)
    target = torch.device(device) if device is not None else tensor.device
    onto = target.type == CURRENT[-1].device.type if CURRENT else ours and target.type != "cpu"
    copy = options.get("copy", False)
    if ours and onto:
        if dtype in (None, tensor.dtype) and not copy:
            return tensor
        return torch.ops.aten._to_copy.default(tensor, dtype=dtype or tensor.dtype)
    if ours:  # to the CPU: a copy
        found = _detached_copy(tensor)
        return found if dtype is None else torch.Tensor.to(found, dtype)
    if dtype is not None:
        tensor = torch._C.TensorBase.to(tensor, dtype)
    return _onto(tensor)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return tensor.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return wrap(gradient)


def _detached_copy(tensor):
    return _Down.apply(tensor) if tensor.requires_grad and torch.is_grad_enabled() else tensor.inner.clone()


def _onto(tensor):
    parameter = isinstance(tensor, torch.nn.Parameter)
    made = wrap(tensor.detach().clone())
    return made.requires_grad_(tensor.requires_grad) if tensor.requires_grad and not parameter else made


def wrap(inner):
    gpu = CURRENT[-1]
    if isinstance(inner, Pretended):
        return inner
    if gpu.device.type == "mps" and inner.dtype in (torch.float64, torch.complex128):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    gpu._count(inner)
    with torch.inference_mode(False):  # else a view, in inference mode, of a tensor made outside it could not be wrapped
        return Pretended(inner)


def _run(function, args, options):
    gpu = CURRENT[-1] if CURRENT else None
    flat, spec = pytree.tree_flatten((args, options))
    ours = [each for each in flat if isinstance(each, Pretended)]
    plain = [each for each in flat if isinstance(each, torch.Tensor) and not isinstance(each, Pretended)]
    asked = [each for each in flat if isinstance(each, torch.device)]
    onto = any(each.type == gpu.device.type for each in asked) if asked and gpu else bool(ours)
    name = function._schema.name.split("::")[1]
    if ours and plain and name not in ("_to_copy", "copy_", "copy", "_has_compatible_shallow_copy_type"):
        strange = [each for each in plain if each.dim() > 0]
        if function in INDEXING:
            if not isinstance(args[0], Pretended):
                raise Mixed(f"{name}: indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            values = args[2] if len(args) > 2 else None
            strange = [values] if values is not None and not isinstance(values, Pretended) and values.dim() else []
        if strange:
            raise Mixed(f"{name}: Expected all tensors to be on the same device, but found {gpu.device} "
                        f"{[tuple(each.shape) for each in ours]} and cpu {[tuple(each.shape) for each in strange]}")
    if onto and name.startswith(RANDOM) and any(isinstance(each, torch.Generator) for each in flat):
        raise Mixed(f"{name}: Expected a '{gpu.device.type}' device type for generator but found 'cpu'")

    def inside(each):
        if isinstance(each, Pretended):
            return each.inner
        return torch.device("cpu") if isinstance(each, torch.device) and gpu and each.type == gpu.device.type else each

    inner_args, inner_options = pytree.tree_unflatten([inside(each) for each in flat], spec)
    found = function(*inner_args, **inner_options)
    if name == "copy_":
        return args[0]
    if not onto:
        return found
    if function._schema.is_mutable:
        known = {id(each.inner): each for each in ours}
        return pytree.tree_map_only(torch.Tensor, lambda each: known.get(id(each)) if id(each) in known else wrap(each), found)
    return pytree.tree_map_only(torch.Tensor, wrap, found)


class _Functions(TorchFunctionMode):
    """What C++ would do before any dispatch: moves of plain tensors to the device, and torch.tensor on it."""

    def __torch_function__(self, function, types, args=(), options=None):
        options = options or {}
        kind = CURRENT[-1].device.type
        if function in (torch.Tensor.to, torch.Tensor.type_as) and not isinstance(args[0], Pretended):
            devices = [each for each in (*args[1:], *options.values()) if isinstance(each, (str, torch.device, torch.Tensor))]
            if any((each.device.type if isinstance(each, torch.Tensor) else torch.device(each).type) == kind for each in devices):
                return _to(args[0], args[1:], options)
        if function is torch.Tensor.cuda and kind == "cuda" and not isinstance(args[0], Pretended):
            return _onto(args[0])
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and options.get("device") is not None \
                and torch.device(options["device"]).type == kind:
            return _onto(function(*args, **{key: value for key, value in options.items() if key != "device"}))
        return function(*args, **options)


class Device(TorchDispatchMode):
    """kind: "cuda" or "mps". memory: bytes of the card. alive, peak: bytes on the device now, and at most."""

    def __init__(self, kind="cuda", memory=80 << 30):
        super().__init__()
        self.device, self.memory, self.alive, self.peak = torch.device(kind, 0), memory, 0, 0
        self._since_reset, self._counted = 0, set()

    def __enter__(self):
        CURRENT.append(self)
        self._stack = contextlib.ExitStack()
        self._stack.callback(CURRENT.pop)
        cuda = self.device.type == "cuda"
        for where, what, value in (
                (torch.cuda, "_lazy_init", lambda: None), (torch.cuda, "device_count", lambda: int(cuda)),
                (torch.cuda, "is_available", lambda: cuda), (torch.cuda, "current_device", lambda: 0),
                (torch.cuda, "empty_cache", lambda: None), (torch.cuda, "memory_allocated", lambda: self.alive),
                (torch.cuda, "mem_get_info", lambda: (self.memory - self.alive, self.memory)),
                (torch.cuda, "max_memory_allocated", lambda: self._since_reset),
                (torch.cuda, "reset_peak_memory_stats", self._reset_peak),
                (torch.backends.mps, "is_available", lambda: not cuda)):
            self._stack.enter_context(mock.patch.object(where, what, lambda *_, value=value, **__: value()))
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        super().__enter__()
        self._stack.enter_context(_Functions())
        return self

    def __exit__(self, *error):
        self._stack.close()
        return super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), options=None):
        return _run(function, args, options or {})

    def _count(self, inner):
        storage = inner.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._counted:
            if self.alive + size > self.memory:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes, "
                                             f"{self.memory - self.alive} are free.")
            self._counted.add(key)
            self.alive += size
            self.peak, self._since_reset = max(self.peak, self.alive), max(self._since_reset, self.alive)
            weakref.finalize(storage, self._gone, key, size)

    def _reset_peak(self):
        self._since_reset = self.alive

    def _gone(self, key, size):
        self._counted.discard(key)
        self.alive -= size
