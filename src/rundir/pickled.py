"""What a pickled checkpoint would build, found out without building it.

``torch.load`` with ``weights_only=True`` runs nothing, but takes a ``bytearray`` of any length, or
a name of shared tuples that is hashed for ever. Here the pickle's instructions are followed one by
one, in time and memory that its own size bounds; all but tensors and plain values are refused.
"""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_PICKLE = 16 * 2**20  # bytes
MAX_WORK = 1_000_000  # instructions, and what they copy
MAX_DIMENSIONS = 64  # of a tensor
MAX_WHOLE = 2**60  # of a name: from here on, Python's hashes of numbers can be made to collide
TENSOR, STORAGE, SET = "tensor", "storage", "set"
TENSORS = tuple(f"torch._utils _rebuild_{kind}" for kind in ("tensor_v2", "tensor_v3", "parameter"))
STORAGE_TYPE = re.compile(r"torch (\w+)Storage|torch\.storage UntypedStorage")
TYPE = re.compile(r"torch (b?float|u?int|bool|complex|half|double|long|short)\d*")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
SCALARS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
MADE = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": SET}


class ExcessError(ValueError):
    """What a pickle holds that no checkpoint does; the message begins with a verb."""


@dataclass
class Made:
    """Stands for an object: what it is, and what a list or dictionary holds."""

    kind: str
    parts: list[object] = field(default_factory=list)


def check_pickle(pickled: bytes) -> None:
    """Raise unless these bytes make tensors and plain values, in the limits above.

    ExcessError or pickle.UnpicklingError for other content; ValueError, IndexError or KeyError for
    what is no pickle.
    """
    if len(pickled) > MAX_PICKLE:
        raise ExcessError(f"holds more than {MAX_PICKLE} bytes beside its tensors")
    _Machine().follow(pickled)


class _Machine:
    """The stack and the memory of a pickle, with stand-ins for objects."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marked: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.left = MAX_WORK
        self.steps: dict[str, Callable[[], None]] = {
            "MARK": self._mark,
            "APPEND": lambda: self._extend([self.stack.pop()]),
            "APPENDS": lambda: self._extend(self._since_mark()),
            "SETITEM": lambda: self._set(self._last(2)),
            "SETITEMS": lambda: self._set(self._since_mark()),
            "TUPLE": lambda: self._tuple(self._since_mark()),
            "TUPLE1": lambda: self._tuple(self._last(1)),
            "TUPLE2": lambda: self._tuple(self._last(2)),
            "TUPLE3": lambda: self._tuple(self._last(3)),
            "BINPERSID": self._storage,
            "REDUCE": self._call,
            "BUILD": self._attributes,
        }

    def follow(self, pickled: bytes) -> None:
        """Every instruction up to the last."""
        for code, argument, _ in pickletools.genops(pickled):
            self._spend(1)
            name = code.name
            if name in self.steps:
                self.steps[name]()
            elif name in SCALARS:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in MADE:
                self.stack.append(Made(MADE[name]))
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name in ("BINPUT", "LONG_BINPUT"):
                self.memo[argument] = self.stack[-1]
            elif name == "GLOBAL":
                self.stack.append(_named(argument))
            elif name not in ("PROTO", "STOP"):
                raise pickle.UnpicklingError(f"instruction {name}")

    def _spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise ExcessError(f"takes more than {MAX_WORK} steps to read")

    def _mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[object]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def _last(self, count: int) -> list[object]:
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("its stack is empty")
        del self.stack[-count:]
        return items

    def _tuple(self, items: list[object]) -> None:
        self.stack.append(tuple(items))

    def _extend(self, items: list[object]) -> None:
        _of_kind(self.stack[-1], "list").parts.extend(items)

    def _set(self, items: list[object]) -> None:
        """Keep the names alone: what they name was looked at when it was made."""
        names = items[::2]
        _check_names(names)
        _of_kind(self.stack[-1], "dict", "OrderedDict", "Counter").parts.extend(names)

    def _storage(self) -> None:
        """The bytes of a tensor: torch holds their number against the file."""
        place = self.stack.pop()
        known = isinstance(place, tuple) and len(place) == 5 and place[0] == "storage"
        if not known or not isinstance(place[1], Made) or not isinstance(place[2], str):
            raise pickle.UnpicklingError("a storage of another kind")
        self.stack.append(Made(STORAGE))

    def _attributes(self) -> None:
        """``_metadata`` of a state_dict, and nothing else."""
        state = _of_kind(self.stack.pop(), "dict")
        _of_kind(self.stack[-1], "OrderedDict")
        self._spend(len(state.parts))

    def _call(self) -> None:
        called, given = self._last(2)
        if not isinstance(called, Made) or not isinstance(given, tuple):
            raise pickle.UnpicklingError("a call of another kind")
        self.stack.append(self._result(called.kind, given))

    def _result(self, called: str, given: tuple[object, ...]) -> object:
        """What a call gives; only those that torch writes, with what it gives them."""
        if called in TENSORS and _fit(given):
            return Made(TENSOR)
        name = called.rpartition(" ")[2]
        if name == "OrderedDict" and not given:
            return Made(name)
        if name == "complex" and all(isinstance(part, float) for part in given):
            return Made(name)
        if name == "encode" and len(given) == 2 and given[1] == "latin1":
            self._spend(len(given[0]) // 64)
            return Made("bytes")
        if name in (SET, "Counter", "Size") and len(given) == 1:
            return self._copied(name, given[0])
        if name == "device" and given and isinstance(given[0], str):
            return Made(name)
        raise pickle.UnpicklingError(f"a call of {called}")

    def _copied(self, name: str, given: object) -> Made:
        """A set, a Counter or a torch.Size of what was made before."""
        parts = list(given) if isinstance(given, tuple) else _of_kind(given, "list", "dict").parts
        self._spend(len(parts))
        _check_names(parts)
        return Made(name, parts)


def _named(name: str) -> Made:
    """A function, class or type by its module and name."""
    known = (
        *TENSORS,
        "collections OrderedDict",
        "collections Counter",
        "_codecs encode",
        "__builtin__ set",
        "__builtin__ complex",
        "builtins set",
        "builtins complex",
        "torch Size",
        "torch device",
    )
    if name in known or STORAGE_TYPE.fullmatch(name) or TYPE.fullmatch(name):
        return Made(name)
    if name.startswith(("torch._utils ", "torch._tensor ")):
        raise ExcessError("holds a tensor of a kind that is not trained here")
    raise pickle.UnpicklingError(f"a global {name}")


def _of_kind(value: object, *kinds: str) -> Made:
    """The stand-in, if it is one of these; raises pickle.UnpicklingError."""
    if isinstance(value, Made) and value.kind in kinds:
        return value
    raise pickle.UnpicklingError(f"no {kinds[0]} where one belongs")


def _check_names(names: list[object]) -> None:
    """Raise ExcessError unless they are hashed at once, all of them to different numbers."""
    for name in names:
        if name is None or isinstance(name, str):
            continue
        if isinstance(name, int) and abs(name) < MAX_WHOLE:
            continue
        raise ExcessError("holds names that are neither words nor whole numbers")


def _fit(given: tuple[object, ...]) -> bool:
    """Whether a tensor is made of its bytes, or a parameter of a tensor, with short tuples."""
    if not given or not isinstance(given[0], Made) or given[0].kind not in (STORAGE, TENSOR):
        return False
    shapes = [part for part in given if isinstance(part, tuple)]
    return all(
        len(shape) <= MAX_DIMENSIONS and all(isinstance(size, int) for size in shape)
        for shape in shapes
    )
