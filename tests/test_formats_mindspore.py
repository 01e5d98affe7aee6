"""MindSpore's checkpoint files against bytes set by hand from the format, and against everything that lies."""

from __future__ import annotations

import resource
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gesso.errors import StorageError
from gesso.formats import mindspore, stored
from gesso.formats.mindspore import read, write


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set on all but the last."""
    out = []
    while True:
        out.append(value % 128 + (128 if value >= 128 else 0))
        value //= 128
        if not value:
            return bytes(out)


def field(number: int, content: bytes) -> bytes:
    return bytes([number * 8 + 2]) + varint(len(content)) + content


def value(name: str, kind: str, dims: list[int], content: bytes, *, packed: bool = False) -> bytes:
    sides = field(1, b"".join(map(varint, dims))) if packed else b"".join(b"\x08" + varint(side) for side in dims)
    return field(1, field(1, name.encode()) + field(2, sides + field(2, kind.encode()) + field(3, content)))


def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    return path


GOLDEN = bytes.fromhex(
    "0a 1c"  # Checkpoint.value, 28 bytes
    "0a 01 77"  # tag: "w"
    "12 17"  # tensor, 23 bytes
    "08 02 08 01"  # dims: 2, 1
    "12 07 46 6c 6f 61 74 33 32"  # tensor_type: "Float32"
    "1a 08 00 00 80 3f 00 00 00 c0"  # tensor_content: 1.0, -2.0
)


def test_the_bytes_of_a_checkpoint_are_those_of_the_format(tmp_path: Path) -> None:
    array = np.array([[1.0], [-2.0]], np.float32)
    write(tmp_path / "own.ckpt", {"w": stored.of(array)})
    assert value("w", "Float32", [2, 1], array.tobytes()) == GOLDEN
    assert (tmp_path / "own.ckpt").read_bytes() == GOLDEN
    found = read(file(tmp_path, GOLDEN))
    assert list(found.tensors) == ["w"]
    assert found.tensors["w"].shape == (2, 1)
    assert found.tensors["w"].code == "F32"
    assert np.array_equal(found.tensors["w"].read(), array)
    assert not found.checked


def test_packed_dims_mean_the_same(tmp_path: Path) -> None:
    raw = np.arange(600, dtype="<i4").tobytes()
    one = value("a", "Int32", [2, 300], raw)
    two = value("b", "Int32", [2, 300], raw, packed=True)
    assert one[1:] != two[1:]
    found = read(file(tmp_path, one + two)).tensors
    assert found["a"].shape == found["b"].shape == (2, 300)
    assert np.array_equal(found["a"].read(), found["b"].read())


@pytest.mark.parametrize(
    "code", ["BOOL", "U8", "I8", "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "F64"]
)
def test_every_type_comes_back_bit_for_bit(tmp_path: Path, code: str) -> None:
    bits = np.arange(24, dtype=np.uint8) if code != "BOOL" else np.arange(24, dtype=np.uint8) % 2
    kind = np.dtype(stored.TYPES[code])
    array = bits.view(kind).reshape(3, -1)
    write(tmp_path / "m.ckpt", {"x": stored.Stored(code=code, shape=array.shape, read=lambda: array)}, checksum=True)
    found = read(tmp_path / "m.ckpt")
    assert found.checked
    assert found.tensors["x"].code == code
    assert found.tensors["x"].read().tobytes() == bits.tobytes()


def test_bfloat16_widens_exactly(tmp_path: Path) -> None:
    raw = np.array([0x3F80, 0xC000, 0x7F80, 0x0001], "<u2")  # 1, -2, infinity, the smallest
    found = read(file(tmp_path, value("x", "BFloat16", [4], raw.tobytes()))).tensors["x"]
    assert found.widened().tolist() == [1.0, -2.0, np.inf, 2.0**-133]


def test_numbers_texts_and_empty_tensors(tmp_path: Path) -> None:
    arrays = {
        "step": np.array(7, np.int64),
        "none": np.zeros((0,), np.float32),
        "flat": np.zeros((2, 0, 3), np.float16),
    }
    write(tmp_path / "m.ckpt", {n: stored.of(a) for n, a in arrays.items()}, {"note": "naïve 一 😀", "blank": ""})
    raw = (tmp_path / "m.ckpt").read_bytes()
    assert value("step", "Int64", [0], (7).to_bytes(8, "little")) in raw
    assert value("note", "str", [0], np.array("naïve 一 😀").tobytes()) in raw
    found = read(tmp_path / "m.ckpt")
    assert found.texts == {"note": "naïve 一 😀", "blank": ""}
    for name, array in arrays.items():
        assert found.tensors[name].shape == array.shape
        assert np.array_equal(found.tensors[name].read(), array)
    state = read(
        file(tmp_path, field(1, field(1, b"random_op") + field(2, field(2, b"random_op") + field(3, b"\xff"))))
    )
    assert state.texts == {"random_op": "ff"}


def test_cut_tensors_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    pieces = [part.tobytes() for part in np.array_split(array.reshape(-1), 3)]  # as MindSpore's older versions cut
    hand = b"".join(value("x", "Float32", [10, 100], piece) for piece in pieces) + value("y", "Bool", [1], b"\1")
    found = read(file(tmp_path, hand)).tensors
    assert list(found) == ["x", "y"]
    assert np.array_equal(found["x"].read(), array)
    monkeypatch.setattr(mindspore, "SLICE", 1536)  # as its newer ones do, at fewer bytes
    write(tmp_path / "own.ckpt", {"x": stored.of(array)}, checksum=True)
    expected = b"".join(value("x", "Float32", [10, 100], array.tobytes()[at : at + 1536]) for at in (0, 1536, 3072))
    assert (tmp_path / "own.ckpt").read_bytes()[:-17] == expected
    assert np.array_equal(read(tmp_path / "own.ckpt").tensors["x"].read(), array)


def test_the_checksum_is_that_of_all_bytes_before(tmp_path: Path) -> None:
    write(tmp_path / "m.ckpt", {"x": stored.of(np.arange(9.0))}, checksum=True)
    raw = (tmp_path / "m.ckpt").read_bytes()
    assert raw[-17:-10] == b"crc_num"
    assert int.from_bytes(raw[-10:], "big") == zlib.crc32(raw[:-17])
    wrong = bytearray(raw)
    wrong[40] ^= 1
    with pytest.raises(StorageError, match="its checksum is"):
        read(file(tmp_path, bytes(wrong)))
    assert read(file(tmp_path, bytes(wrong)), verify=False).tensors.keys() == {"x"}


GOOD = value("a", "Float32", [2, 3], bytes(24))
LYING = {
    "empty": (b"", "it is empty"),
    "other": (b"hello, world", "has the field 13"),
    "zip": (b"PK\3\4" + bytes(40), "has the field|begins no field"),
    "huge dims": (value("a", "Float32", [1 << 40, 1 << 40], bytes(4)), "has 4 bytes, but its shape"),
    "negative": (value("a", "Float32", [(1 << 64) - 1], bytes(4)), "or a negative one"),
    "short": (value("a", "Float32", [7], bytes(24)), "has 24 bytes, but"),
    "long": (value("a", "Float32", [5], bytes(24)), "has 24 bytes, but"),
    "twice": (GOOD + GOOD, '"a" is there twice'),
    "twice apart": (GOOD + value("b", "Bool", [1], b"\1") + GOOD, '"a" is there twice'),
    "two shapes": (value("a", "Int8", [9], bytes(4)) + value("a", "Int8", [3, 3], bytes(5)), "not of one type"),
    "many dims": (value("a", "Int8", [1] * 33, b"\0"), "would have over 32 dimensions"),
    "packed dims": (value("a", "Int8", [1] * 100_000, b"\0", packed=True), "would have over 32 dimensions"),
    "kind": (value("a", "Complex64", [1], bytes(8)), '"Complex64", which is not known'),
    "no name": (field(1, field(2, field(2, b"Int8") + field(3, b"\0"))), "has no name"),
    "no tensor": (field(1, field(1, b"a")), "has no tensor"),
    "no type": (field(1, field(1, b"a") + field(2, field(3, b"\0"))), '"a" has no type'),
    "no content": (field(1, field(1, b"a") + field(2, field(2, b"Int8"))), '"a" has no content'),
    "two contents": (field(1, field(1, b"a") + field(2, field(3, b"") + field(3, b""))), "has the field 3 twice"),
    "map": (field(1, field(1, b"a") + field(3, b"")), "hash table"),
    "name": (value("a" * 5000, "Int8", [1], b"\0"), "would have 5000 bytes"),
    "bytes": (field(1, field(1, b"\xff\xfe") + field(2, b"")), "not UTF-8"),
    "varint": (b"\x0a" + b"\xff" * 10 + b"\1", "longer than 64 bits"),
    "overflow": (b"\x0a" + b"\xff" * 9 + b"\x7f", "longer than 64 bits"),
    "length": (b"\x0a\xff\xff\xff\xff\x7f" + bytes(9), "are left; it is cut off"),
    "group": (b"\x0b\x0c", "wire type 3"),
    "text": (value("t", "str", [0], b"\0\0\xff\xff"), "is no text"),
}


@pytest.mark.parametrize("case", LYING)
def test_what_lies_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    content, reason = LYING[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StorageError, match=reason):
        read(file(tmp_path, content))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize(("magic", "mode"), [(0x7F3A5ED8, "AES-GCM"), (0x7F3A5ED9, "AES-CBC"), (0x7F3A5EDA, "SM4-CBC")])
def test_an_encrypted_file_is_refused(tmp_path: Path, magic: int, mode: str) -> None:
    with pytest.raises(StorageError, match=f"encrypted \\({mode}\\)"):
        read(file(tmp_path, magic.to_bytes(4, "little") + bytes(100)))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    whole = GOOD + value("b", "Float16", [3], bytes(6), packed=True)
    for length in range(len(whole)):
        path = file(tmp_path, whole[:length])
        if length == len(GOOD):  # a concatenation of messages has no end of its own
            assert list(read(path).tensors) == ["a"]
            continue
        with pytest.raises(StorageError, match="not a whole MindSpore checkpoint"):
            read(path)


def test_a_file_beyond_the_memory_is_listed_without_reading_it(tmp_path: Path) -> None:
    """Eight sparse gigabytes, sixteen values of 512 MiB for one tensor."""
    pieces, size = 16, 512 << 20
    path = tmp_path / "big.ckpt"
    empty = value("x", "Float32", [pieces, size // 4], b"")
    inner = field(1, b"x") + b"\x12"
    assert inner in empty
    tensor = b"\x08" + varint(pieces) + b"\x08" + varint(size // 4) + field(2, b"Float32") + b"\x1a" + varint(size)
    body = inner + varint(len(tensor) + size) + tensor
    with path.open("wb") as out:
        for _ in range(pieces):
            out.write(b"\x0a" + varint(len(body) + size) + body)
            out.seek(size, 1)
        out.truncate()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read(path).tensors["x"]
    assert found.shape == (pieces, size // 4)
    assert found.nbytes == 8 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), flips=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4))
def test_no_bytes_do_anything_but_read_or_be_refused(
    tmp_path: Path, content: bytes, flips: list[tuple[int, int]]
) -> None:
    changed = bytearray(GOOD + value("b", "str", [0], "ab".encode("utf-32-le")))
    for at, byte in flips:
        changed[at % len(changed)] = byte
    for raw in (content, bytes(changed)):
        try:
            found = read(file(tmp_path, raw))
        except StorageError:
            continue
        assert all(tensor.read().nbytes == tensor.nbytes for tensor in found.tensors.values())


@pytest.fixture(scope="module")
def protobuf() -> Any:
    """The Checkpoint message as Google's library makes it of the schema, tensor and maptensor being one of two."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file_ = descriptor_pb2.FileDescriptorProto(name="checkpoint.proto", package="check", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    tensor = file_.message_type.add(name="TensorProto")
    tensor.field.add(name="dims", number=1, label=kinds.LABEL_REPEATED, type=kinds.TYPE_INT64)
    tensor.field.add(name="tensor_type", number=2, label=kinds.LABEL_REQUIRED, type=kinds.TYPE_STRING)
    tensor.field.add(name="tensor_content", number=3, label=kinds.LABEL_REQUIRED, type=kinds.TYPE_BYTES)
    whole = file_.message_type.add(name="Checkpoint")
    one = whole.nested_type.add(name="Value")
    one.oneof_decl.add(name="value")
    one.field.add(name="tag", number=1, label=kinds.LABEL_REQUIRED, type=kinds.TYPE_STRING)
    for name, number in (("tensor", 2), ("maptensor", 3)):
        one.field.add(
            name=name, number=number, label=kinds.LABEL_OPTIONAL, type=kinds.TYPE_MESSAGE, oneof_index=0,
            type_name=".check.TensorProto",
        )  # fmt: skip
    whole.field.add(
        name="value", number=1, label=kinds.LABEL_REPEATED, type=kinds.TYPE_MESSAGE, type_name=".check.Checkpoint.Value"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file_)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("check.Checkpoint"))


def test_googles_library_reads_what_is_written(protobuf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mindspore, "SLICE", 1000)
    rng = np.random.default_rng(1)
    arrays = {
        "a.weight": rng.normal(size=(40, 30)).astype("f4"),
        "b": np.arange(5),
        "c": np.array(2.5),
        "d": np.zeros(0),
    }
    write(tmp_path / "x.ckpt", {name: stored.of(array) for name, array in arrays.items()}, {"note": "一"})
    found = protobuf()
    found.ParseFromString((tmp_path / "x.ckpt").read_bytes())
    assert [each.tag for each in found.value] == ["a.weight"] * 5 + ["b", "c", "d", "note"]
    assert b"".join(each.tensor.tensor_content for each in found.value[:5]) == arrays["a.weight"].tobytes()
    assert {tuple(each.tensor.dims) for each in found.value[:5]} == {(40, 30)}
    assert [each.tensor.tensor_type for each in found.value[4:]] == ["Float32", "Int64", "Float64", "Float64", "str"]
    assert found.SerializeToString() == (tmp_path / "x.ckpt").read_bytes()


def test_what_googles_library_writes_is_read(protobuf: Any, tmp_path: Path) -> None:
    made = protobuf()
    arrays = {"x.y": np.arange(600, dtype=np.float16).reshape(2, 300), "step": np.array(9, np.int32)}
    for name, array in arrays.items():
        one = made.value.add(tag=name)
        one.tensor.dims.extend(array.shape or (0,))
        one.tensor.tensor_type = array.dtype.name.capitalize()
        one.tensor.tensor_content = array.tobytes()
    found = read(file(tmp_path, made.SerializeToString()))
    assert list(found.tensors) == list(arrays)
    for name, array in arrays.items():
        assert found.tensors[name].shape == array.shape
        assert np.array_equal(found.tensors[name].read(), array)
    made.value.add(tag="table").maptensor.tensor_type = "x"
    made.value[-1].maptensor.tensor_content = b""
    with pytest.raises(StorageError, match="hash table"):
        read(file(tmp_path, made.SerializeToString()))
