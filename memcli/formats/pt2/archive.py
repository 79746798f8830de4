"""The zip archive that ``torch.export.save`` writes: read within bounds, edited in place.

Nothing of it is unpickled, ever: what the archive keeps pickled (its example inputs, objects of
the user's own classes) is not even read. A plan is a member that stands last, so that taking it
off gives back every byte of the archive that it was put into.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from memcli.errors import BadInput
from memcli.quoting import shown

KIND = "archive_format"
# More tensors than any network has; each is a member.
MOST_MEMBERS = 200_000
# Of the graph and of each table as text: a language model of 80 layers takes some 30 MiB.
LARGEST_TEXT = 256 << 20
_LARGEST_RATIO = 200  # PyTorch stores members as they are; other tools may compress them
_FREE_RATIO = 1 << 20  # bytes that a small member may unpack to at any ratio
_PROBLEMS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    RuntimeError,  # an encrypted member
    NotImplementedError,  # a compression that Python has not
    EOFError,
    OSError,
    ValueError,
    LookupError,
    OverflowError,
    struct.error,
    zlib.error,
)
_DAMAGED = "copy it again, or save it again with torch.export.save"


@dataclass(frozen=True)
class Archive:
    """A checked archive: ``members`` by their names below the one folder that all are in."""

    name: str  # of the file, to begin messages with
    data: bytes
    folder: str
    members: Mapping[str, zipfile.ZipInfo]

    def __contains__(self, member: str) -> bool:
        return member in self.members

    def read(self, member: str, most: int = LARGEST_TEXT) -> bytes:
        """A member's bytes, at most so many.

        Raises:
            BadInput: it is not there, larger than that, or damaged.
        """
        info = self.members.get(member)
        if info is None:
            raise BadInput(f"{self.name}: has no member {shown(member)}", _DAMAGED)
        if info.file_size > most:
            raise BadInput(
                f"{self.name}: its member {shown(member)} is of {info.file_size >> 20} MiB, more "
                f"than the {most >> 20} MiB that memcli reads"
            )
        try:
            with zipfile.ZipFile(io.BytesIO(self.data)) as file:
                return file.read(info)
        except MemoryError as error:
            raise BadInput(f"{self.name}: {shown(member)} does not fit in memory") from error
        except _PROBLEMS as error:
            raise _damaged(self.name, error) from error


def looks_like_pt2(data: bytes) -> bool:
    """Whether bytes are a zip archive that says that it holds exported programs, of any age."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    tail = data[-(64 << 20) :]
    return f"/{KIND}".encode() in tail or b"serialized_exported_program.json" in tail


def open_archive(data: bytes, name: str) -> Archive:
    """The archive of bytes, its directory checked: names, how many, and sizes.

    Raises:
        BadInput: damaged, encrypted, too many members, names that leave the archive or are there
            twice, sizes that unpack to an unreasonable amount, or no archive of exported programs.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            rows = file.infolist()
    except MemoryError as error:
        raise BadInput(f"{name}: the directory of the archive does not fit in memory") from error
    except _PROBLEMS as error:
        raise _damaged(name, error) from error
    if len(rows) > MOST_MEMBERS:
        raise BadInput(f"{name}: has {len(rows)} members, and memcli reads {MOST_MEMBERS}")
    if sum(row.compress_size for row in rows) > len(data):
        raise BadInput(f"{name}: its members overlap, which no program that saves one does")
    for row in rows:
        _check_name(row.orig_filename, name)
        if row.file_size > max(_FREE_RATIO, _LARGEST_RATIO * row.compress_size):
            raise BadInput(
                f"{name}: its member {shown(row.filename)} unpacks to {row.file_size >> 20} MiB "
                f"from {row.compress_size} bytes, which no program does"
            )
        if row.flag_bits & 1:
            raise BadInput(f"{name}: its member {shown(row.filename)} is encrypted")
    folders = {row.filename.partition("/")[0] for row in rows}
    if "serialized_exported_program.json" in {row.filename for row in rows}:
        raise BadInput(
            f"{name}: was saved by a PyTorch before 2.8, which pickled its weights; memcli "
            "unpickles nothing",
            "torch.export.save(torch.export.load(old), new) with a newer PyTorch",
        )
    if len(folders) != 1 or not all("/" in row.filename for row in rows):
        raise BadInput(f"{name}: its members are not in one folder, as PyTorch writes them")
    folder = folders.pop()
    members = {row.filename[len(folder) + 1 :]: row for row in rows}
    if len(members) != len(rows):
        seen: set[str] = set()
        twice = next(r.filename for r in rows if r.filename in seen or seen.add(r.filename))  # type: ignore[func-returns-value]
        raise BadInput(f"{name}: has the member {shown(twice)} twice")
    archive = Archive(name, data, folder, members)
    if archive.read(KIND, 64).strip() != b"pt2":
        raise BadInput(f"{name}: is not an archive of exported programs ({KIND} is not pt2)")
    return archive


def _check_name(member: str, name: str) -> None:
    parts = member.split("/")
    odd = member.startswith("/") or ".." in parts or "\\" in member or "\0" in member
    if odd or not all(part.isprintable() for part in parts):
        raise BadInput(f"{name}: has a member of the impossible name {shown(member)}")


def _damaged(name: str, error: BaseException) -> BadInput:
    return BadInput(f"{name}: the archive is damaged: {shown(str(error))}", _DAMAGED)


# -- editing -----------------------------------------------------------------------------------

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_LOCAL = struct.Struct("<4s5H3L2H")
_RECORD = struct.Struct("<4s6H3L5H2L")
_MOST16, _MOST32 = 0xFFFF, 0xFFFFFFFF
_UTF8 = 0x800
_FIRST_DAY = 0x21  # 1980-01-01: a plan says nothing of when it was made


@dataclass(frozen=True)
class _Directory:
    """Where an archive's directory is, and what follows it."""

    start: int
    records: bytes
    count: int
    has64: bool
    comment: bytes
    made: tuple[int, int] = (0, 0)  # versions that the 64-bit end names

    def tail(self, start: int, records: bytes, count: int) -> bytes:
        """A directory in this one's form."""
        size = len(records)
        parts = [records]
        if self.has64:
            parts.append(
                _END64.pack(b"PK\x06\x06", 44, *self.made, 0, 0, count, count, size, start)
            )
            parts.append(_LOCATOR.pack(b"PK\x06\x07", 0, start + size, 1))
        elif count >= _MOST16 or start >= _MOST32:
            raise ValueError("more than such a directory can hold")
        parts.append(
            _END.pack(
                b"PK\x05\x06",
                0,
                0,
                min(count, _MOST16),
                min(count, _MOST16),
                min(size, _MOST32),
                min(start, _MOST32),
                len(self.comment),
            )
        )
        return b"".join([*parts, self.comment])


def _directory(archive: Archive) -> _Directory:
    data = archive.data
    at = data.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(data):
        raise _unusual(archive)
    _, _, _, _, count, size, start, length = _END.unpack_from(data, at)
    comment = data[at + _END.size :]
    has64, made, end = False, (0, 0), at
    place = at - _LOCATOR.size
    if place >= 0 and data[place : place + 4] == b"PK\x06\x07":
        _, _, end, _ = _LOCATOR.unpack_from(data, place)
        if end + _END64.size != place or data[end : end + 4] != b"PK\x06\x06":
            raise _unusual(archive)
        _, _, one, other, _, _, _, count, size, start = _END64.unpack_from(data, end)
        has64, made = True, (one, other)
    if len(comment) != length or start + size != end:
        raise _unusual(archive)
    return _Directory(start, data[start:end], count, has64, comment, made)


def _unusual(archive: Archive) -> BadInput:
    return BadInput(
        f"{archive.name}: the directory of the archive is in no form that PyTorch writes", _DAMAGED
    )


def with_member(archive: Archive, member: str, content: bytes) -> bytes:
    """The archive with one more member, behind all others; every other byte stays.

    Raises:
        BadInput: the directory is none that PyTorch writes.
        ValueError: the member is there already.
    """
    if member in archive:
        raise ValueError(f"{member} is there already")
    found = _directory(archive)
    path = f"{archive.folder}/{member}".encode()
    known = (zlib.crc32(content), len(content), len(content), len(path))
    common = (_UTF8, 0, 0, _FIRST_DAY, *known, 0)
    local = _LOCAL.pack(b"PK\x03\x04", 20, *common) + path + content
    record = _RECORD.pack(b"PK\x01\x02", 20, 20, *common, 0, 0, 0, 0, found.start) + path
    records = found.records + record
    start = found.start + len(local)
    try:
        tail = found.tail(start, records, found.count + 1)
    except (ValueError, struct.error) as error:
        raise _unusual(archive) from error
    return archive.data[: found.start] + local + tail


def without_member(archive: Archive, member: str) -> bytes:
    """The archive without a member: the very bytes from before :func:`with_member` put it there,
    where nobody else has written it since; else all other members as they are.

    Raises:
        BadInput: the member is not there.
    """
    info = archive.members.get(member)
    if info is None:
        raise BadInput(f"{archive.name}: has no member {shown(member)}")
    path = f"{archive.folder}/{member}".encode()
    try:
        found = _directory(archive)
        length = _RECORD.size + len(path)
        record = found.records[-length:]
        local = _LOCAL.size + len(path) + info.compress_size
        last = record[_RECORD.size :] == path and info.header_offset + local == found.start
        if last and record[:4] == b"PK\x01\x02":
            start = info.header_offset
            tail = found.tail(start, found.records[:-length], found.count - 1)
            return archive.data[:start] + tail
    except (BadInput, struct.error, ValueError):
        pass
    return _written_anew(archive, member)


def _written_anew(archive: Archive, left_out: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for member, info in archive.members.items():
            if member != left_out:
                content = archive.read(member, len(archive.data) * _LARGEST_RATIO)
                file.writestr(zipfile.ZipInfo(info.filename), content)
    return out.getvalue()
