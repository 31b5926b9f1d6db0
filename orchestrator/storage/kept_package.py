"""The code that travels with a study, kept with its results, for a Redis that lost it.

Invariant: what is kept was signed for the study by a secret of this fleet, if there is one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from workers.coordination.packages import Packages
from workers.disk import durable
from workers.logs import get_logger
from workers.protocol.errors import PackageError
from workers.protocol.packages import Package, unpack
from workers.protocol.spec import StudySpec
from workers.settings import Settings

log = get_logger(__name__)

#: Of what is kept here all is taken: it was bounded when it was kept.
_MAX_BYTES: Final = 2**40


def keep_package(packages: Packages, spec: StudySpec, settings: Settings) -> None:
    """Have the package of a study be here and in Redis, signed by the secret that signs now.

    Raises:
        PackageError: It is in neither, or is none.
        UnsealedError: It is only in Redis, and is not signed.
        OSError: The disk takes no more.
    """
    digest = spec.code.package
    if digest is None:
        return
    file = _file_of(settings.home, spec.name, digest)
    package = _read(file, digest)
    if package is None:
        package = packages.fetch(spec.name, digest)
        unpack(package, settings.code_size)  # says what is wrong with it
        durable.write_whole(file, package.content, mode=0o600)
    if not packages.is_latest(spec.name, package):
        packages.ship(spec.name, package)


def _read(file: Path, digest: str) -> Package | None:
    """What is kept; None if it is not there, or not whole."""
    try:
        package = Package(digest, file.read_bytes())
        unpack(package, _MAX_BYTES)
    except FileNotFoundError:
        return None
    except PackageError as error:
        log.warning("kept_package_damaged", file=str(file), error=str(error))
        return None
    return package


def _file_of(home: Path, study: str, digest: str) -> Path:
    return home / "studies" / study / f"code-{digest[:16]}.tar.zz"
