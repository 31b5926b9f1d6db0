from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from workers.protocol.errors import PackageError
from workers.protocol.packages import MAX_FILES, Package, PackedFile, pack, unpack

LIMIT = 10_000

part = st.text("abcé._- ", min_size=1, max_size=120).filter(lambda each: each not in {".", ".."})
names = st.lists(part, min_size=1, max_size=4).map("/".join)
files = st.dictionaries(
    names, st.builds(PackedFile, st.binary(max_size=300), st.booleans()), max_size=6
)


few = settings(max_examples=40)


def packed(these) -> Package:
    try:
        return pack(these)
    except PackageError:  # a path that is a file and a folder
        reject()


@few
@given(files)
def test_what_was_packed_comes_back_in_whatever_order(these):
    package = packed(these)
    assert unpack(package, LIMIT) == these
    assert pack(dict(reversed(these.items()))) == package


@few
@given(st.binary(max_size=2000), st.booleans())
def test_what_is_no_package_is_refused(content, is_compressed):
    content = zlib.compress(content) if is_compressed else content
    for digest in (hashlib.sha256(content).hexdigest(), "0" * 64):
        with pytest.raises(PackageError):
            unpack(Package(digest, content), LIMIT)


@few
@given(files, st.integers(0, 10**6), st.integers(0, 255))
def test_of_an_altered_package_come_the_same_files_or_none(these, place, byte):
    whole = {**these, "x.py": PackedFile(b"x")}
    package = packed(whole)
    altered = bytearray(package.content)
    altered[place % len(altered)] = byte
    with suppress(PackageError):  # a compressor's note on its own work may be any
        assert unpack(Package(package.digest, bytes(altered)), LIMIT) == unpack(package, LIMIT)


def forged(write) -> Package:
    """A package whose digest is its own, and whose archive others have made."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        write(archive)
    text = written.getvalue()
    return Package(hashlib.sha256(text).hexdigest(), zlib.compress(text))


def member(name, kind=tarfile.REGTYPE, content=b"", **fields):
    head = tarfile.TarInfo(name)
    head.type, head.size = kind, len(content)
    for field, value in fields.items():
        setattr(head, field, value)
    return lambda archive: archive.addfile(head, io.BytesIO(content))


def twice(archive):
    member("x.py")(archive)
    member("x.py", content=b"other")(archive)


def many(archive):
    for index in range(MAX_FILES + 1):
        member(f"{index:05}.py")(archive)


FORGERIES = {
    "out of the folder": member("../x.py"),
    "somewhere below": member("a/../../x.py"),
    "absolute": member("/etc/x.py"),
    "windows": member("..\\x.py"),
    "nowhere": member("a//x.py"),
    "itself": member("./x.py"),
    "a line": member("a\nb.py"),
    "a link": member("x.py", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": member("x.py", tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a device": member("x.py", tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a pipe": member("x.py", tarfile.FIFOTYPE),
    "a folder": member("x", tarfile.DIRTYPE),
    "a sparse file": member(
        "x.py", content=b"", pax_headers={"GNU.sparse.size": "99999999999", "GNU.sparse.map": "0,1"}
    ),
    "twice": twice,
    "too many": many,
    "a bomb": member("x.py", content=b"\0" * 50_000_000),
    "too large": member("x.py", content=b"\1" * (LIMIT + 1)),
    "less than nothing": member("x.py", pax_headers={"size": "-512"}),
    "another mode": member("x.py", mode=0o4755),
    "a time": member("x.py", mtime=1),
    "an owner": member("x.py", uname="root"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_package_that_others_made_is_refused(forgery):
    with pytest.raises(PackageError):
        unpack(forged(FORGERIES[forgery]), LIMIT)


def test_what_follows_a_package_is_refused():
    package = pack({"x.py": PackedFile(b"x")})
    with pytest.raises(PackageError, match="something follows"):
        unpack(Package(package.digest, package.content + b"x"), LIMIT)
