"""An unpickler that admits numpy arrays of plain pixels and nothing else.

A pickle is a program: it may call any function it can name. This one can name none. The four names by which
numpy writes an array stand for plain records here, from which the array is built afterwards, by hand.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np


class NotAnArrayError(ValueError):
    """The pickle holds something else than one array of uint8. The message is a reason to skip it."""


def load_pixels(data: bytes) -> np.ndarray:
    """The one uint8 array, of any shape, that `data` is the pickle of. Read-only, C order.

    Raises NotAnArrayError for a pickle that is cut short, damaged, of another kind of array or of anything
    else; nothing it asks for is called, in no case.
    """
    try:
        found = _Unpickler(io.BytesIO(data)).load()
    except NotAnArrayError:
        raise
    except EOFError:
        raise NotAnArrayError("pickle is cut short") from None
    except Exception as error:  # damaged opcodes raise whatever they happen to run into
        cut = "truncated" in str(error) or "ran out" in str(error).lower()
        raise NotAnArrayError("pickle is cut short" if cut else "file is no readable pickle") from None
    if not isinstance(found, _Array):
        raise NotAnArrayError(f"pickle holds a {type(found).__name__}, not a numpy array")
    return found.build()


class _Dtype:
    """What `numpy.dtype(code, align, copy)` and its state would make."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:  # byte order and fields: a uint8 has neither
        pass


class _Array:
    """What numpy's state of an array says: (version, shape, dtype, whether Fortran order, bytes)."""

    shape: Any = None
    dtype: Any = None
    fortran: Any = False
    pixels: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.pixels = state

    def build(self) -> np.ndarray:
        code = self.dtype.code if isinstance(self.dtype, _Dtype) else None
        if code not in {"u1", "|u1"}:
            kind = "an array of objects" if code in {"O", "O8", "|O"} else f"an array of type {code}"
            raise NotAnArrayError(f"pickle holds {kind}, not of uint8")
        sizes = self.shape
        if not (isinstance(sizes, tuple) and all(type(size) is int and size >= 0 for size in sizes)):
            raise NotAnArrayError("pickle holds an array without a shape")
        if not isinstance(self.pixels, bytes | bytearray) or len(self.pixels) != math.prod(sizes):
            raise NotAnArrayError("pickle holds an array with more or fewer bytes than its shape says")
        flat = np.frombuffer(bytes(self.pixels), np.uint8)
        return np.ascontiguousarray(flat.reshape(sizes, order="F" if self.fortran else "C"))


class _Name:
    """A name that a pickle may use: calls `make`, and cannot be altered by the pickle for the next one."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise NotAnArrayError("pickle alters what it may only call")


def _never_called(*_: Any) -> None:
    raise NotAnArrayError("pickle calls numpy.ndarray, which writing an array never does")


def _from_buffer(pixels: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", pixels))
    return array


def _encode(text: Any, codec: Any) -> bytes:
    """How protocols 0 to 2 write bytes: as text in which a character is a byte."""
    if not isinstance(text, str) or codec != "latin1":
        raise NotAnArrayError("pickle encodes other text than an array's bytes")
    return text.encode("latin1")


_ADMITTED = {
    ("numpy", "ndarray"): _Name(_never_called),
    ("numpy", "dtype"): _Name(_Dtype),
    ("_codecs", "encode"): _Name(_encode),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Name(lambda *_: _Array()) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Name(_from_buffer) for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise NotAnArrayError(f"pickle wants {module}.{name}, which no array of pixels needs") from None

    def persistent_load(self, pid: Any) -> Any:
        raise NotAnArrayError("pickle refers to something outside of itself")
