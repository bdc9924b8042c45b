"""What a module computes depends on more than a call's arguments: a description of all of that.

Layers, weights, adapters and their scales, attention processors, switches, hooks: whatever a user can
change between two calls changes the description, and the graph is made again. Two modules with the
same description and weights compute the same, in this process and in another.
"""

import functools
import hashlib
import operator
import re
import types
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["Weights", "described", "fingerprint", "is_of_class", "obstacle", "weight_norms"]

#: What nn.Module keeps for itself, and where Diffusers notes what a modular pipeline loaded; layers and
#: weights are described on their own.
_OWN = frozenset((*vars(nn.Module()), "_diffusers_load_id")) - {"training"}
#: transformers' own hooks, put on layers at the first call that asks for what these return. A capture
#: calls them, too, and they do nothing else.
_RECORDING = ("transformers.utils.output_capturing", "_output_capturing_hooks_installed")
#: How deep objects that are no modules are looked into: an attention processor, its options, …
_DEPTH = 4
_MOST = 200
#: What a config or a module says of where it comes from, which changes nothing; Diffusers lists which
#: fields were left at their defaults in another order in each process.
_WHENCE = frozenset(
    ("_name_or_path", "_diffusers_version", "_commit_hash", "name_or_path", "_is_hf_initialized")
    + ("_weight_conversions",)  # how transformers read the names in the file
    + ("_use_default_values", "_class_name")  # the latter is in files alone
    # What PEFT loaded is described itself; this stays when that is gone.
    + ("_hf_peft_config_loaded",)
    + _RECORDING[1:]
)
_UNSAID = _OWN | _WHENCE
#: What transformers sets on a module that it reads from a file, and leaves out on one that it makes.
_UNUSED = ("_use_kernels", False)
#: What Diffusers' ``fuse_lora`` leaves on a model for itself; the weights are what it changed.
_FUSING = ("lora_scale", "_safe_fusing")
#: What is its own description.
_PLAIN = frozenset((type(None), bool, int, float, str, bytes))
#: What a class may have that is written to, and what is looked at among a module's variables.
_OPEN = (list, dict, set, Tensor, np.ndarray)
_WATCHED = (bool, int, float, str, types.FunctionType)
#: Weights of up to so many bytes are read at every call.
_SMALL = 1 << 24
#: How tensors that are attributes are written, and lists of them: tables of positions for one.
_TABLES = re.compile(r"tensor[\w.]+\([\d, ]*\)[\w:]*")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_NONE = re.compile(r"\[None(,None)*\]")
#: A prime, so that rows of no layer fall into the same columns.
_COLUMNS = 509
#: What all layers derive from; the former is looked at once.
_BASES = (nn.Module, object)
#: torch's functions as they were found; libraries put others in their places.
_FUNCTIONS = [
    (space, name, function)
    for space in (vars(torch), vars(torch.nn.functional))
    for name, function in space.items()
    if callable(function)
]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_DTYPES = (*_FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


def described(module: nn.Module, *, placed: bool = True) -> str:
    """A digest of everything but the numbers in the weights.

    Args:
        module: What to describe.
        placed: Whether the weights' dtype and device are part of it, and tables that a module keeps
            beside its weights, which some make at their first call.
    """
    parts = list(module.named_modules())
    token = _parts.set(_parts.get() | {id(part) for _, part in parts})
    try:
        return _described(parts, placed)
    finally:
        _parts.reset(token)


#: The layers of the modules that are being described: where one refers to another, it is named alone.
_parts: ContextVar[frozenset[int]] = ContextVar("parts", default=frozenset())


def _described(parts: list[tuple[str, nn.Module]], placed: bool) -> str:
    # Runs at every call: one join and one digest, each class once, and no work for plain values.
    said = [_surroundings()]
    classes: dict[type, str] = {}
    for name, part in parts:
        kind = type(part)
        if kind not in classes:
            classes[kind] = _class(kind)
        said.append(f"\n{name} {classes[kind]}")
        for key, value in vars(part).items():
            if key in _UNSAID or (key, value) == _UNUSED:
                continue
            if key in _FUSING and hasattr(part, "fuse_lora"):
                continue
            if type(value) in _PLAIN:
                said.append(f" {key}={value!r}")
            elif not _is_usual(part, key, value):
                said.append(f" {key}={_value(value, _DEPTH)}")
        if name:  # hooks of the module itself are called by torch, around what stands in
            hooks = _hooks(part)
            if hooks:
                said.append(f" hooks={_value(hooks, _DEPTH)}")
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    place = f"{tensor.dtype}{tensor.device}" if placed else ""
                    said.append(f" {key}:{tuple(tensor.shape)}{place}")
    text = "".join(said)
    if not placed:
        text = _NONE.sub("None", _TABLES.sub("None", text))
    return hashlib.sha256(text.encode()).hexdigest()


def _hooks(part: nn.Module) -> list[Any]:
    """What is called before and after a layer."""
    if not (part._forward_hooks or part._forward_pre_hooks):
        return []
    found = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    return [
        hook
        for hook in found
        if getattr(hook, "__module__", None) != _RECORDING[0] and not isinstance(hook, WeightNorm)
    ]


def weight_norms(part: nn.Module) -> list[str]:
    """The weights that a hook makes of a direction and a length before each call of a layer.

    A graph has them whole; what they are made of are the layer's parameters.
    """
    hooks = part._forward_pre_hooks.values()
    return [hook.name for hook in hooks if isinstance(hook, WeightNorm)]


def _is_usual(part: nn.Module, key: str, value: Any) -> bool:
    """Whether an attribute changes nothing: what stands in for a method, or what hooks leave behind."""
    if isinstance(value, types.MethodType):
        return is_of_class(part, key, value)
    gone = key == "_diffusers_hook" and not value.hooks
    made = isinstance(value, Tensor) and key in weight_norms(part)
    return gone or made or hasattr(value, "stands_in")


def is_of_class(part: nn.Module, key: str, value: Any) -> bool:
    """Whether an attribute is the class's own method; accelerate leaves that where its hook was."""
    own = isinstance(value, types.MethodType) and value.__self__ is part
    return own and value.__func__ is getattr(type(part), key, None)


def _surroundings() -> str:
    """What is not the module's and changes what it computes: torch's own functions, hooks on all modules."""
    said = [_namespace(nn.Module)]
    for space, name, function in _FUNCTIONS:
        found = space.get(name)
        if found is not function:
            said.append(f"{name}={_value(found, 2)}")
    hooks = _hooks_on_all()
    return "".join(said) + (_value(hooks, 2) if hooks else "")


def _hooks_on_all() -> list[Any]:
    """What torch calls before and after every module there is."""
    return [
        *every_module._global_forward_hooks.values(),
        *every_module._global_forward_pre_hooks.values(),
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Namespace:
    """What a class has by itself, as it was when it was last described."""

    #: Its values, and of its functions code and defaults, which can be exchanged in place. What these
    #: were is kept, so that nothing else can have their addresses.
    held: list[Any]
    functions: list[types.FunctionType]
    #: What may be written to: lists, dicts, tensors.
    open: list[Any]
    #: Where its functions' code reads variables, by namespace and name.
    variables: list[tuple[dict[str, Any], str]]
    #: A digest of the rest.
    text: str

    @property
    def changes(self) -> str:
        """What may be another at each call, though nothing of the class was replaced."""
        said = [_value(one, 2) for one in self.open]
        said += [_variable(space.get(name)) for space, name in self.variables]
        for function in self.functions:
            if function.__closure__:
                said += [
                    _value(cell.cell_contents, 0) for cell in function.__closure__ if _filled(cell)
                ]
        return ",".join(said)


#: By class.
_namespaces: dict[type, _Namespace] = {}


def _class(kind: type) -> str:
    """A class by name, with the code of its methods and its own plain values, and those of its bases."""
    own = [_namespace(one) for one in kind.__mro__ if one not in _BASES]
    return f"{kind.__module__}.{kind.__qualname__}:{''.join(own)}"


def _namespace(kind: type) -> str:
    known = _namespaces.get(kind)
    if known is None or not _same_objects(_held(kind, known.functions), known.held):
        members = {
            name: value
            for name, value in vars(kind).items()
            if not name.startswith("__") or name == "__call__"
        }
        functions = [one for value in members.values() for one in _functions_of(value)]
        said = ",".join(f"{name}:{_member(value)}" for name, value in members.items())
        said += _value([(one.__defaults__, one.__kwdefaults__) for one in functions], 4)
        known = _namespaces[kind] = _Namespace(
            held=_held(kind, functions),
            functions=functions,
            open=[one for one in members.values() if isinstance(one, _OPEN)],
            variables=[pair for one in functions for pair in _variables(one)],
            text=hashlib.sha256(said.encode()).hexdigest()[:16],
        )
    changes = known.changes
    return f"{known.text}{changes}"


def _held(kind: type, functions: Sequence[types.FunctionType]) -> list[Any]:
    inner = [(one.__code__, one.__defaults__, one.__kwdefaults__) for one in functions]
    return [*vars(kind).values(), *(part for parts in inner for part in parts)]


def _same_objects(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The functions behind a member of a class: those in decorators, and that decorated, too."""
    if isinstance(value, property):
        return [one for part in (value.fget, value.fset) for one in _functions_of(part)]
    found = []
    while value is not None:
        if isinstance(value, types.FunctionType):
            found.append(value)
        value = getattr(value, "__wrapped__", None) or getattr(value, "__func__", None)
    return found


def _variables(function: types.FunctionType) -> list[tuple[dict[str, Any], str]]:
    """The variables of its module that a function's code reads, where they hold what is looked at."""
    space = function.__globals__
    return [
        (space, name)
        for name in _names(function.__code__)
        if name in space and not name.startswith("__") and isinstance(space[name], _WATCHED)
    ]


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return (*code.co_names, *(name for one in inner for name in _names(one)))


def _variable(value: Any) -> str:
    """A variable of a module: what is plain, and the code of functions."""
    if type(value) in _PLAIN:
        return repr(value)
    return _code(value) if isinstance(value, types.FunctionType) else type(value).__qualname__


def _member(value: Any) -> str:
    """What a class has under a name: a method's code, or a value."""
    if isinstance(value, property):
        return "".join(_code(one) for one in (value.fget, value.fset) if one is not None)
    if isinstance(value, staticmethod | classmethod | types.FunctionType):
        return _function(value, 1)
    return repr(value) if type(value) in _PLAIN else type(value).__qualname__


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _bytecode(value)
    # The order of a set is another one in each process.
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


@functools.lru_cache(maxsize=4096)
def _bytecode(code: types.CodeType) -> str:
    consts = [_constant(one) for one in code.co_consts]
    return hashlib.sha256(f"{code.co_code.hex()}{code.co_names}{consts}".encode()).hexdigest()[:16]


def _code(function: Any) -> str:
    code = getattr(_plain(function), "__code__", None)
    return _bytecode(code) if code is not None else _written(function)


def _plain(function: Any) -> Any:
    """The function behind decorators and bound methods."""
    while hasattr(function, "__wrapped__") or hasattr(function, "__func__"):
        function = getattr(function, "__func__", None) or function.__wrapped__
    return function


def _value(value: Any, depth: int) -> str:
    """What an attribute is, as text; objects by class, code and their own attributes."""
    if value is None or isinstance(
        value, bool | int | float | str | bytes | torch.dtype | torch.device
    ):
        return repr(value)
    if isinstance(value, Tensor):
        return f"tensor{value.dtype}{tuple(value.shape)}{value.device}{_content(value)}"
    if isinstance(value, nn.Module):
        return _referred(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, dict):
        pairs = _limited([pair for pair in value.items() if pair[0] not in _WHENCE])
        return "{" + ",".join(f"{k!r}:{_value(v, depth - 1)}" for k, v in pairs) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return "[" + ",".join(_value(v, depth - 1) for v in _limited(list(items))) + "]"
    if isinstance(value, types.FunctionType | types.MethodType | functools.partial):
        return _function(value, depth)
    if isinstance(value, np.ndarray):
        return f"array{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    kind, slots = type(value), _slots(value)
    if hasattr(value, "__dict__") or slots:
        return f"{_class(kind)}{_value({**getattr(value, '__dict__', {}), **slots}, depth - 1)}"
    return f"{kind.__module__}.{kind.__qualname__}:{_written(value)}"


def _limited(items: list[Any]) -> list[Any]:
    """All of what is plain, and the first ones of what may be anything."""
    plain = all(type(one) in _PLAIN for one in items[_MOST:])
    return items if plain else items[:_MOST]


def _referred(module: nn.Module) -> str:
    """A module that an attribute holds: a layer is described as one; one in a list is no layer."""
    if id(module) in _parts.get():
        return f"module {type(module).__qualname__}"
    weights = "".join(
        _content(one) if one.nbytes <= _SMALL else _sample(one) for one in _tensors(module)
    )
    return f"module {described(module)}{weights}"


def _sample(tensor: Tensor) -> str:
    return hashlib.sha256(
        _few(tensor).cpu().contiguous().view(torch.uint8).numpy().data
    ).hexdigest()[:16]


def _slots(value: Any) -> dict[str, Any]:
    """The attributes of an object whose class names them in ``__slots__``."""
    given = (vars(one).get("__slots__", ()) for one in type(value).__mro__)
    names = [name for own in given for name in ((own,) if isinstance(own, str) else own)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _written(value: Any) -> str:
    """An object as Python writes it, without its address."""
    return _ADDRESS.sub("", repr(value))


def _function(value: Any, depth: int) -> str:
    if isinstance(value, functools.partial):
        given = _value([value.args, value.keywords], depth - 1)
        return f"partial {_value(value.func, depth - 1)}{given}"
    plain = _plain(value)
    cells = [
        cell.cell_contents for cell in getattr(plain, "__closure__", None) or () if _filled(cell)
    ]
    usual = [getattr(plain, name, None) for name in ("__defaults__", "__kwdefaults__")]
    owner = getattr(value, "__self__", None)  # of a method: what it reads
    seen = [*cells, *usual, *([] if isinstance(owner, type) else [owner])]
    return f"{getattr(plain, '__qualname__', '')}:{_code(value)}{_value(seen, depth - 1)}"


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


class Weights:
    """Whether a module's weights are still the numbers that a graph was made with.

    At every call tensors are compared by address, by their count of writes, and by a few of their
    numbers. A write of single numbers through ``.data`` leaves all of these as they were; the sums
    over everything see it, which take as long as reading the weights once.
    """

    def __init__(self, module: nn.Module) -> None:
        tensors = list(_tensors(module))
        self._marks = _marks(tensors)
        self._few = [_few(tensor) for tensor in tensors]
        self._numbers = torch.cat(self._few) if self._few else torch.zeros(0)
        self._sums = [_sums(tensor) for tensor in tensors]
        self._small = sum(tensor.nbytes for tensor in tensors) <= _SMALL

    def changed(self, module: nn.Module, *, thorough: bool) -> bool:
        """Whether a weight was replaced or written to since.

        Args:
            module: The module.
            thorough: Read all of them; those of a small module are read always.
        """
        tensors = list(_tensors(module))
        if _marks(tensors) != self._marks:
            return True
        if self._few and not _same(torch.cat(self._few), self._numbers):
            return True
        if not (thorough or self._small):
            return False
        return any(
            not torch.equal(_sums(tensor), before)
            for tensor, before in zip(tensors, self._sums, strict=True)
        )


def _marks(tensors: list[Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), _version(tensor)) for tensor in tensors]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits: NaN equals itself."""
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def _sums(tensor: Tensor) -> Tensor:
    """Sums over the bits of a tensor in columns: what is exchanged lands in other columns."""
    plain = tensor.detach()
    bits = plain if plain.is_contiguous() else plain.contiguous()
    raw = bits.reshape(-1).view(torch.uint8)
    whole = len(raw) // (8 * _COLUMNS) * 8 * _COLUMNS
    return torch.cat(
        [
            raw[:whole].view(torch.int64).view(-1, _COLUMNS).sum(0),
            raw[whole:].to(torch.int64),
        ]
    )


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _content(tensor: Tensor) -> str:
    """The numbers of a tensor that is an attribute, and no weight: such are small."""
    if tensor.is_meta:
        return ""
    return hashlib.sha256(_sums(tensor).cpu().numpy().data).hexdigest()[:16]


def _few(tensor: Tensor) -> Tensor:
    """About sixteen numbers of a tensor, read where they lie."""
    count = tensor.numel()
    step = max(1, -(-count // 16))
    return tensor.detach().as_strided((-(-count // step),), (step,))


def fingerprint(module: nn.Module) -> str:
    """A digest of a module's description and of all its weights."""
    digest = hashlib.sha256(described(module).encode())
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def obstacle(module: nn.Module) -> str | None:
    """Why a module's calls have to stay on torch; ``None`` if they need not."""
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "it was compiled with torch.compile"
    if _hooks_on_all():
        return (
            "a hook on every module is registered, which a graph would call for none of its layers"
        )
    for name, part in module.named_modules():
        where = f"its layer {name}" if name else "it"
        own = vars(part)
        if "_hf_hook" in own:
            return f"{where} has a hook of accelerate, which moves weights while it runs"
        registry = own.get("_diffusers_hook")
        if registry is not None and registry.hooks:
            return f"{where} has the hook {', '.join(registry.hooks)} of Diffusers"
        if part is not module and _hooks(part):
            return f"{where} has a forward hook, which a graph would not call"
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            return f"its weight {name} is on the meta device: nothing is loaded"
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            return f"its weight {name} is quantised: a {type(tensor).__name__}"
        if tensor.dtype not in _DTYPES:
            return f"its weight {name} is stored as {tensor.dtype}".replace("torch.", "")
    return None
