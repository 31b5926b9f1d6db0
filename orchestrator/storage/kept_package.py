"""The code that travels with a study, kept with its results, for a Redis that lost it.

Invariant: what is kept was signed for the study by a secret of this fleet, if there is one.
"""

from __future__ import annotations

from pathlib import Path

from workers.coordination.packages import Packages
from workers.disk import durable
from workers.protocol.packages import Package, unpack
from workers.protocol.spec import StudySpec
from workers.settings import Settings


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
    if not file.exists():
        package = packages.fetch(spec.name, digest)
        unpack(package, settings.code_size)  # says what is wrong with it
        durable.write_whole(file, package.content, mode=0o600)
    if not packages.is_latest(spec.name, digest):
        packages.ship(spec.name, Package(digest, file.read_bytes()))


def _file_of(home: Path, study: str, digest: str) -> Path:
    return home / "studies" / study / f"code-{digest[:16]}.tar.zz"
