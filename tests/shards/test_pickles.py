"""OpenGait's pickles, honest and not."""

import io
import json
import os
import pickle
import pickletools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shards
from shards.pack import pack
from shards.silhouettes import ZERO_BYTES, ZERO_ONE
from shards.skips import Skips
from shards.sources import LAYOUTS
from shards.sources.arrays import NotAnArrayError, load_pixels
from shards.sources.opengait import NO_PICKLE, PADDED, SEVERAL, WITHOUT_PICKLE

OPENGAIT = LAYOUTS["opengait"]


def frames(num_frames: int, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 64, width), np.uint8)


def write_pickle(root: Path, path: str, content: Any, protocol: int | None = None) -> Path:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{folder.name}.pkl"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return file


def read_one(root: Path) -> tuple[np.ndarray, Skips]:
    skips = Skips()
    (sequence,) = OPENGAIT.discover(root, skips)
    return OPENGAIT.read(root, sequence, skips), skips


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol_and_order(protocol: int, order: str) -> None:
    array = np.asarray(frames(5), order=order)
    loaded = load_pixels(pickle.dumps(array, protocol=protocol))
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == np.uint8 and loaded.flags.c_contiguous


def test_numpy_1_and_2_names() -> None:
    old, new = b"numpy.core.multiarray", b"numpy._core.multiarray"
    written = pickle.dumps(frames(2), protocol=2)  # later ones write the name's length before it
    other = written.replace(new, old) if new in written else written.replace(old, new)
    assert other != written
    np.testing.assert_array_equal(load_pixels(other), frames(2))


class Command:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def test_nothing_is_ever_called(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for function, argument in (
        (os.system, f"touch {victim}"),
        (subprocess.check_output, ["touch", str(victim)]),
        (exec, f"open({str(victim)!r}, 'w')"),
        (eval, f"open({str(victim)!r}, 'w')"),
        (np.save, str(victim)),
        (np.load, str(victim)),
        (getattr, "x"),
    ):
        for content in (Command(function, argument), [frames(1), Command(function, argument)]):
            with pytest.raises(NotAnArrayError, match=r"pickle wants .*, which no array of pixels needs"):
                load_pixels(pickle.dumps(content))
    assert not victim.exists()


def test_admitted_names_cannot_be_altered_for_the_next_pickle() -> None:
    before = pickle.dumps(frames(1), protocol=2)
    for module, name in (("numpy", "dtype"), ("numpy", "ndarray"), ("numpy.core.multiarray", "_reconstruct")):
        # BUILD with (None, {"_make": ...}) sets attributes of whatever has no __setstate__.
        attack = f"c{module}\n{name}\n(N(dV_make\nc_codecs\nencode\nstb.".encode()
        with pytest.raises(NotAnArrayError, match="alters what it may only call"):
            load_pixels(attack)
    np.testing.assert_array_equal(load_pixels(before), frames(1))
    with pytest.raises(NotAnArrayError, match=r"calls numpy\.ndarray"):
        load_pixels(b"cnumpy\nndarray\n(I1000000000000\ntR.")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (frames(2).astype(np.float32), "an array of type f4, not of uint8"),
        (frames(2) > 100, "an array of type b1, not of uint8"),
        (np.array([frames(1), None], object), "an array of objects, not of uint8"),
        ([frames(1)], "pickle holds a list, not a numpy array"),
        ({"frames": 1}, "pickle holds a dict, not a numpy array"),
        ("text", "pickle holds a str, not a numpy array"),
        (pickle.dumps(frames(3))[:-500], "pickle is cut short"),
        (pickle.dumps(frames(3))[:40], "pickle is cut short"),
        (b"no pickle", "file is no readable pickle"),
        (b"\x80\x05.", "file is no readable pickle"),
        (frames(3)[0], "array is [64, 64], not [frames, 64, 64] or [frames, 64, 44]"),
        (np.zeros((3, 128, 88), np.uint8), "array is [frames, 128, 88], not"),
        (b"", ZERO_BYTES),
        (frames(2) // 128, ZERO_ONE),
    ],
)
def test_what_is_no_sequence_is_skipped_with_its_reason(tmp_path: Path, content: Any, reason: str) -> None:
    write_pickle(tmp_path, "001/nm-01/090", content)
    array, skips = read_one(tmp_path)
    assert array.shape == (0, 64, 64)
    ((found, count, examples),) = skips
    assert reason in found and (count, examples) == (1, ["001/nm-01/090/090.pkl"])


def test_a_shape_that_lies() -> None:
    honest = pickle.dumps(frames(2), protocol=2)
    position = next(
        place for op, argument, place in pickletools.genops(honest) if op.name == "BININT1" and argument == 2
    )
    for lie in (1, 3, 255):
        forged = io.BytesIO(honest)
        forged.seek(position + 1)
        forged.write(bytes([lie]))
        with pytest.raises(NotAnArrayError, match="more or fewer bytes than its shape says"):
            load_pixels(forged.getvalue())


def test_44_columns_get_their_margins_back(tmp_path: Path) -> None:
    narrow = frames(3, width=44)
    write_pickle(tmp_path, "0001/camid0_videoid1/seq0", narrow)
    array, skips = read_one(tmp_path)
    assert array.shape == (3, 64, 64) and not array[..., :10].any() and not array[..., 54:].any()
    np.testing.assert_array_equal(array[..., 10:54], narrow)
    assert list(skips) == [(PADDED, 1, ["0001/camid0_videoid1/seq0/seq0.pkl"])]


def test_raggedness_is_counted(tmp_path: Path) -> None:
    write_pickle(tmp_path, "001/nm-01/090", frames(3))
    write_pickle(tmp_path, "001/nm-01/000", frames(5))
    (tmp_path / "001/nm-01/000/000.pkl").rename(tmp_path / "001/nm-01/000/other.pkl")
    (tmp_path / "001/nm-01/018").mkdir()
    write_pickle(tmp_path, "001/nm-01/036", frames(1))
    (tmp_path / "001/nm-01/036/pose.pkl").touch()
    write_pickle(tmp_path, "001/nm-01/054", frames(1))
    for name in ("a.pkl", "b.pkl"):
        (tmp_path / f"001/nm-01/054/{name}").touch()
    (tmp_path / "001/nm-01/054/054.pkl").unlink()
    (tmp_path / "001/nm-01/090/notes.txt").touch()
    skips = Skips()
    found = list(OPENGAIT.discover(tmp_path, skips))
    assert [(s.path, s.num_raw_frames) for s in found] == [
        ("001/nm-01/000/other.pkl", 5),
        ("001/nm-01/036/036.pkl", 1),
        ("001/nm-01/090/090.pkl", 3),
    ]
    assert skips.examples == {
        WITHOUT_PICKLE: ["001/nm-01/018"],
        SEVERAL: ["001/nm-01/054"],
        NO_PICKLE: ["001/nm-01/090/notes.txt"],
    }
    (tmp_path / "raw/001/nm-01/090").mkdir(parents=True)
    (tmp_path / "raw/001/nm-01/090/1.png").touch()
    with pytest.raises(ValueError, match=r"expected SUBJECT/CONDITION/VIEW/VIEW\.pkl"):
        list(OPENGAIT.discover(tmp_path / "raw", Skips()))


def test_packed_with_a_published_partition(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    originals = {}
    for seed, subject in enumerate(("0000", "0001", "0002")):
        key = f"{subject}-camid0_videoid2-seq0"
        originals[key] = frames(4 + seed, seed=seed)
        write_pickle(raw, key.replace("-", "/"), originals[key])
    partition = tmp_path / "Gait3D.json"
    partition.write_text(
        json.dumps(
            {
                "TRAIN_SET": ["0000", "0001"],
                "TEST_SET": ["0002"],
                "PROBE_SET": ["0002-camid0_videoid2-seq0"],
            }
        )
    )
    summary = pack("opengait", raw, tmp_path / "set", partition, workers=1, progress=False)
    assert summary.name == "gait3d"
    shard_set = shards.open(tmp_path / "set")
    for row, array in enumerate(shard_set.read(range(3))):
        np.testing.assert_array_equal(array, originals[shard_set.index["key"][row].as_py()])
    assert shard_set.index["split"].to_pylist() == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("partition", "name"), [("casia-b", "casia-b"), ("OUMVLP.json", "oumvlp"), ("own.yaml", "own")]
)
def test_a_data_set_is_called_what_its_partition_is(tmp_path: Path, partition: str, name: str) -> None:
    write_pickle(tmp_path / "raw", "001/nm-01/000", frames(4))
    given: str | Path = partition
    if partition.endswith(("json", "yaml")):
        given = tmp_path / partition
        given.write_text('{"TRAIN_SET": ["001"], "TEST_SET": []}')
    summary = pack("opengait", tmp_path / "raw", tmp_path / "set", given, workers=1, progress=False)
    assert summary.name == shards.open(tmp_path / "set").name == name
