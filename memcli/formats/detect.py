"""Reading a model file, and telling from its content what it is."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import io
import os
import stat
import sys
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO, TypeAlias

from memcli.errors import BadInput
from memcli.formats.caffe.detect import looks_like_caffe
from memcli.formats.import_string import BUILDER, is_import_string
from memcli.formats.registry import FORMATS, ModelFormat
from memcli.quoting import STANDARD, shown, shown_path

# ONNX files cannot exceed protobuf's 2 GiB.
LARGEST_FILE = 2 << 30
# A gzip member can hold a thousand times its size; real graphs stay under a hundred times.
LARGEST_UNPACKED = 1 << 30
_CHUNK = 16 << 20  # bytes that are read at a time
_FREE_UNPACKED = 64 << 20
_LARGEST_RATIO = 200

_GZIP = b"\x1f\x8b"
_WANTED = "memcli reads MXNet symbol JSON, ONNX, Caffe prototxt and .pt2 of torch.export"


@dataclass(frozen=True)
class ModelSource:
    """A model as it was read, once: every later step of a command works on these bytes.

    Pipes can be read only once, and a file may be another one a moment later.
    """

    path: str  # as given; "-" is standard input
    data: bytes = field(repr=False)  # gzip taken off
    sha256: str  # of what was read, as stored
    format: str  # the name of one of FORMATS
    notes: tuple[str, ...] = ()  # told to the user where the model is read

    @property
    def kind(self) -> ModelFormat:
        """What is known of its format."""
        return FORMATS[self.format]


# What the functions that take a model take: its path, or what was read already.
Model: TypeAlias = "str | os.PathLike[str] | ModelSource"


def read_source(model: Model) -> ModelSource:
    """A model's bytes and what they are; what was read already comes back as it is.

    ``package.module:function``, where no such file is there, is the user's code, which is run.

    Raises:
        BadInput: as :func:`read_model_bytes` and :func:`detect_format`.
    """
    if isinstance(model, ModelSource):
        return model
    path = os.fspath(model)
    if is_import_string(path):
        module, _, function = BUILDER.partition(":")
        built: ModelSource = getattr(importlib.import_module(module), function)(path)
        return built
    data, sha256 = read_model_bytes(path)
    return ModelSource(path, data, sha256, detect_format(data, shown_path(path)))


def model_path(model: Model) -> str:
    """The path that a model has, or was read from."""
    return model.path if isinstance(model, ModelSource) else os.fspath(model)


def read_model_bytes(path: str | os.PathLike[str]) -> tuple[bytes, str]:
    """The content of a model file, gzip taken off, and the SHA-256 of the file as stored.

    ``path`` may be a pipe, or ``-``, which is standard input.

    Raises:
        BadInput: missing, unreadable, a folder or device, too large, or gzip that is damaged or
            unpacks to an unreasonable size.
    """
    name = shown_path(os.fspath(path))
    stored = _read(path, name)
    return unpacked(stored, name), hashlib.sha256(stored).hexdigest()


def detect_format(data: bytes, name: str = "the input") -> str:
    """Which kind of model ``data`` (already unpacked) is; ``name`` begins the error message.

    Returns:
        The name of one of :data:`memcli.formats.registry.FORMATS`.

    Raises:
        BadInput: none of them; the message says what it looks like instead.
    """
    for kind in FORMATS.values():
        if kind.certain and kind.recognizes(data):
            return kind.name
    start = data[:512].lstrip(b" \t\r\n\v\f")
    known = _known_other(data, start)
    for kind in FORMATS.values():
        if known is None and not kind.certain and kind.recognizes(data):
            return kind.name
    what, hint = known or _unknown(data, start)
    raise BadInput(f"{name}: {what}", hint)


def unpacked(stored: bytes, name: str) -> bytes:
    """``stored`` with gzip taken off, if it is gzip.

    Raises:
        BadInput: damaged gzip, gzip within gzip, or a decompression bomb.
    """
    if not stored.startswith(_GZIP):
        return stored
    limit = min(LARGEST_UNPACKED, max(_FREE_UNPACKED, _LARGEST_RATIO * len(stored)))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(stored)) as file:
            data = file.read(limit + 1)
    except EOFError as error:
        raise BadInput(
            f"{name}: the gzip file is cut short", "copy or download it again"
        ) from error
    except (OSError, zlib.error) as error:
        raise BadInput(
            f"{name}: the gzip file is damaged: {error}", "copy or download it again"
        ) from error
    except MemoryError as error:
        raise BadInput(f"{name}: the gzip file unpacks to more than fits in memory") from error
    if len(data) > limit:
        raise BadInput(
            f"{name}: the gzip file unpacks to over {limit >> 20} MiB, which no graph does",
            "unpack it yourself if it is what you mean",
        )
    if data.startswith(_GZIP):
        raise BadInput(f"{name}: is gzip within gzip", "unpack it once")
    return data


def _read(path: str | os.PathLike[str], name: str) -> bytes:
    try:
        if os.fspath(path) == STANDARD:
            if sys.stdin is None:
                raise BadInput(f"{name}: is closed", "give the model's path")
            return _whole(sys.stdin.buffer, name)
        with open(path, "rb") as file:
            return _whole(file, name)
    except FileNotFoundError as error:
        raise BadInput(f"{name}: there is no such file") from error
    except IsADirectoryError as error:
        raise BadInput(f"{name}: is a folder, not a file", "give the model file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{name}: cannot be read: {why}") from error
    except MemoryError as error:
        raise BadInput(f"{name}: does not fit in memory") from error


def _whole(file: BinaryIO, name: str) -> bytes:
    """All of an open file or pipe."""
    with contextlib.suppress(io.UnsupportedOperation):  # no file of the system's
        found = os.fstat(file.fileno())
        kind = found.st_mode
        if file.isatty():
            raise BadInput(f"{name}: is a terminal", "give a model's path, or pipe one in")
        nothing = stat.S_ISCHR(kind) and found.st_rdev == os.stat(os.devnull).st_rdev
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or nothing):
            raise BadInput(f"{name}: is not a file that can be read to its end")
        if stat.S_ISREG(kind) and found.st_size > LARGEST_FILE:
            raise BadInput(f"{name}: is larger than 2 GiB", f"{_WANTED} up to that size")
    chunks, size = [], 0
    while chunk := file.read(_CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST_FILE:
            raise BadInput(f"{name}: is larger than 2 GiB", f"{_WANTED} up to that size")
    return b"".join(chunks)


def _known_other(data: bytes, start: bytes) -> tuple[str, str] | None:
    """(what it is, what to do) for other kinds of file that people have at hand."""
    if not data:
        return "is empty", "copy or download it again"
    if looks_like_caffe(data) == "solver":
        return (
            "is a Caffe solver, which names the net that it trains",
            "give that net (the file that its 'net' or 'train_net' names)",
        )
    if not data.strip(b"\0"):
        return "holds nothing but zero bytes", "copy or download it again"
    if data.startswith(b"\x12\x01\0\0\0\0\0\0"):
        return (
            "is an MXNet parameter file, which holds weights and no graph",
            "give the symbol file that goes with it (NAME-symbol.json)",
        )
    if data.startswith(b"PK\x03\x04"):
        if b"data.pkl" in data[:4096]:
            return (
                "is a PyTorch checkpoint (zip), which holds no graph that memcli reads",
                "export the model: torch.export.save(torch.export.export(model, args), 'net.pt2')",
            )
        return "is a zip archive", "unpack it and give the model in it"
    if data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05" and len(data) > 2:
        return (
            "is a Python pickle (an older PyTorch checkpoint?), which memcli does not open",
            "export the model to ONNX",
        )
    if data.startswith(b"version https://git-lfs.github.com/"):
        return "is a Git LFS pointer, not the model itself", "fetch it with: git lfs pull"
    if data.startswith((b"/annex/objects/", b"../.git/annex/")):
        return "is a git-annex pointer, not the model itself", "fetch it with: git annex get"
    lower = start[:64].lower()
    if lower.startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            "is a web page (HTML), not a model",
            "the download went wrong: get the file itself",
        )
    for magic, what in _MAGICS:
        if data.startswith(magic):
            return f"is {what}", _WANTED
    if data[4:8] == b"TFL3":
        return "is a TensorFlow Lite model", _WANTED
    if data[257:262] == b"ustar":
        return "is a tar archive", "unpack it and give the model in it"
    if data[8:9] == b"{" and 0 < int.from_bytes(data[:8], "little") < 100 << 20:
        return "is a safetensors file, which holds weights and no graph", _WANTED
    if start.startswith((b"ir_version:", b"graph {")):
        return "is ONNX in its text form", "convert it to the binary form (onnx.parser, onnx.save)"
    if start.startswith(b"["):
        return "is a JSON list, not a graph", "MXNet symbol JSON is an object with 'nodes'"
    return None


_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n", "an HDF5 file (Keras weights?)"),
    (b"\x93NUMPY", "a numpy array"),
    (b"GGUF", "a GGUF model"),
    (b"BZh", "bzip2-compressed: unpack it first"),
    (b"\xfd7zXZ\0", "xz-compressed: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"\x7fELF", "an executable or library"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"<?xml", "an XML file (an OpenVINO model?)"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
)


def _unknown(data: bytes, start: bytes) -> tuple[str, str]:
    """Words for what is of no known kind."""
    if not start:
        return "holds nothing but blanks", "copy or download it again"
    try:
        text = start[:48].decode("utf-8", errors="strict" if len(start) <= 48 else "ignore")
    except UnicodeDecodeError:
        text = ""
    printable = sum(char.isprintable() or char in "\t\r\n" for char in text)
    if text and b"\0" not in data[:4096] and printable == len(text):
        first = text.splitlines()[0].strip()
        return f"is text, but no JSON object: it begins with {shown(first)}", _WANTED
    return "is binary data of no kind that memcli knows", f"{_WANTED}; is the file damaged?"
