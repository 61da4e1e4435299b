"""One sequence <-> bytes: the payload of a `<key>.sils.npy.gz` tar member, and the key itself."""

import ast
import gzip
import io
import zlib
from functools import lru_cache

import numpy as np

try:
    import deflate
except ImportError:  # the format is ordinary gzip: libdeflate only makes it faster
    deflate = None  # type: ignore[assignment]

# libdeflate's is eight times as fast as zlib's, and the same sum.
crc32 = zlib.crc32 if deflate is None else deflate.crc32

PAYLOAD_SUFFIX = ".sils.npy.gz"
DESCRIPTION_SUFFIX = ".json"

# On recorded walking, bytes and microseconds a frame: level 6 379 and 35, 7 363 and 50, 9 352 and 175, 12 319
# and 2,337. Reading the PNG takes 160, so above 7 packing would mostly compress.
COMPRESSION_LEVEL = 7
LEVELS = range(1, 13) if deflate is not None else range(1, 10)

# A USTAR header has 100 bytes for the member's name, and readers split the key at its first dot.
_LONGEST_KEY = 100 - len(PAYLOAD_SUFFIX)
_FORBIDDEN = {".": "dot", "/": "slash", "\\": "backslash"}
_MAGIC = b"\x93NUMPY\x01\x00"
_UNREADABLE: tuple[type[Exception], ...] = (ValueError, OSError, EOFError, zlib.error)
if deflate is not None:
    _UNREADABLE += (deflate.DeflateError,)


def make_key(subject: str, condition: str, view: str) -> str:
    """`subject-condition-view`, such as `001-nm-01-090`: unique within a data set, and a tar member's name.

    Raises ValueError for an empty part, for one with a dot, a slash, a blank or an unprintable character
    (WebDataset readers cut the key at its first dot), and for a key of more than 88 bytes (a tar header holds
    no more).
    """
    for what, part in (("subject", subject), ("condition", condition), ("view", view)):
        if (fault := part_fault(part)) is not None:
            raise ValueError(f"{what} {part!r} {fault}: rename it before packing.")
    key = f"{subject}-{condition}-{view}"
    if (length := len(key.encode())) > _LONGEST_KEY:
        raise ValueError(f"key {key!r} is {length} bytes long, a tar member's name leaves room for {_LONGEST_KEY}.")
    return key


def part_fault(part: str) -> str | None:
    """What is wrong with a subject, condition or view as a part of a key, or None."""
    if not part:
        return "is empty"
    for character, name in _FORBIDDEN.items():
        if character in part:
            return f"holds a {name}"
    if not part.isprintable() or any(character.isspace() for character in part):
        return "holds a blank or an unprintable character"
    return None


def encode(silhouettes: np.ndarray, level: int = COMPRESSION_LEVEL) -> bytes:
    """uint8 [frames, height, width] -> gzip of a version 1.0 `.npy`, C order. Same array and level, same bytes."""
    if silhouettes.dtype != np.uint8 or silhouettes.ndim != 3:
        raise ValueError(
            f"a sequence is uint8 [frames, height, width], this is {silhouettes.dtype} {list(silhouettes.shape)}."
        )
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(silhouettes), version=(1, 0), allow_pickle=False)
    if deflate is None:
        return gzip.compress(buffer.getvalue(), level, mtime=0)
    return bytes(deflate.gzip_compress(buffer.getvalue(), level))


def decode(payload: bytes | memoryview) -> np.ndarray:
    """The bytes of a `.sils.npy.gz` -> read-only uint8 [frames, height, width].

    Raises ValueError when the bytes are no gzip, fail gzip's own checksum, or hold another kind of array.
    """
    try:
        plain = gzip.decompress(payload) if deflate is None else deflate.gzip_decompress(payload)
    except _UNREADABLE as error:
        raise ValueError(f"not a readable gzip member: {error}") from error
    shape, start = _parse_header(plain)
    if len(plain) - start != shape[0] * shape[1] * shape[2]:
        raise ValueError(f"the array's header says {list(shape)}, {len(plain) - start} bytes of pixels follow.")
    return _read_only(np.ndarray(shape, np.uint8, plain, start))


def _parse_header(plain: bytes | bytearray) -> tuple[tuple[int, int, int], int]:
    """Shape, and where the pixels start. By hand: `np.load` would copy the pixels once more."""
    if not plain.startswith(_MAGIC):
        raise ValueError("not an .npy of version 1.0.")
    start = 10 + int.from_bytes(plain[8:10], "little")
    return _shape_of(bytes(plain[10:start])), start


@lru_cache(4096)  # a data set has as many headers as its sequences have lengths
def _shape_of(text: bytes) -> tuple[int, int, int]:
    header = ast.literal_eval(text.decode("latin-1").strip())
    shape = header["shape"]
    if header["descr"] != "|u1" or header["fortran_order"] or len(shape) != 3:
        raise ValueError(f"a sequence is uint8 [frames, height, width] in C order, this is {header}.")
    return shape


def _read_only(array: np.ndarray) -> np.ndarray:
    # deflate gives a bytearray, gzip gives bytes: the caller sees one behaviour.
    array.flags.writeable = False
    return array
