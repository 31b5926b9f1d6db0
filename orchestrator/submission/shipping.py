"""Which files travel with a study, and their package: named, bounded, and nothing by mistake.

Invariant: what is packed lies below one folder, and the same files make the same package; a study
that ships imports its objective from what it ships.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pathspec import GitIgnoreSpec

from workers.disk import durable
from workers.disk.shipped_code import write_files
from workers.objective_source import is_shipped
from workers.protocol.errors import InvalidInputError, PackageError, nearest
from workers.protocol.packages import MAX_FILES, Package, PackedFile, pack, unpack
from workers.protocol.spec import FINETUNE, StudySpec

#: Never code of a study's, whatever `.gitignore` says.
_RUBBISH: Final = frozenset(
    {
        "__pycache__", ".git", ".hg", ".svn", ".venv", ".tox", ".nox", ".mypy_cache",
        ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", ".idea", ".vscode", ".DS_Store",
        "node_modules",
    }
)  # fmt: skip

#: What of a folder stays here because it may hold secrets or results; named by itself, it travels.
_PRIVATE: Final = (
    ".env*", ".netrc", "_netrc", ".aws", ".azure", ".ssh", ".gnupg", ".kube", ".docker", ".npmrc",
    ".pypirc", ".git-credentials", "id_*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx",
    "wandb", "mlruns", "*.ipynb_checkpoints",
)  # fmt: skip

#: What lies in every virtual environment, whatever its name.
_ENVIRONMENT: Final = "pyvenv.cfg"


def ships(fields: Mapping[str, Any]) -> bool:
    """Whether the fields of a study, as people write them, name code that travels."""
    code = fields.get("code")
    return isinstance(code, Mapping) and bool(code.get("ship"))


def below(objective: str, folder: Path) -> str:
    """An objective by the path of its file below a folder; one by a dotted name as it is.

    Raises:
        InvalidInputError: Its file lies elsewhere.
    """
    module, _, function = objective.rpartition(":")
    if not module.endswith(".py"):
        return objective
    name = os.path.relpath(folder / module, folder)
    if name.startswith(os.pardir):
        raise InvalidInputError(
            f"objective = {objective!r}: its file does not lie below {folder}, from where"
            " `code.ship` takes files; move it there"
        )
    return f"{PurePosixPath(name)}:{function}"


def with_package(spec: StudySpec, folder: Path, max_bytes: int) -> tuple[StudySpec, Package | None]:
    """A study with the digest of what it ships, and the package; None if it ships nothing.

    Args:
        spec: The study.
        folder: What the paths of `code.ship` are below.
        max_bytes: What all files together may have.

    Raises:
        InvalidInputError: A file cannot travel, or there are too many, or the objective is in none.
    """
    if not spec.code.ship:
        if spec.code.package is not None:
            raise InvalidInputError(
                "code.package is filled in when a study is handed in; name its files in `code.ship`"
            )
        return spec, None
    if spec.objective == FINETUNE:
        raise InvalidInputError(
            f"code.ship = {spec.code.ship}: {FINETUNE} is built in and imports nothing of it; leave"
            " it out"
        )
    files = collect(folder, spec.code.ship, max_bytes)
    try:
        package = pack(files)
    except PackageError as error:
        raise InvalidInputError(f"code.ship: {error}; rename it") from error
    code = spec.code.model_copy(update={"package": package.digest, "sha256": None})
    return spec.model_copy(update={"code": code}), package


@contextmanager
def unpacked(spec: StudySpec, package: Package, max_bytes: int) -> Iterator[tuple[StudySpec, Path]]:
    """A study as this machine would run it from its package alone, and where that lies.

    Args:
        spec: The study.
        package: What it ships.
        max_bytes: What all files together may have.

    Raises:
        InvalidInputError: The objective is not in it; or what the block raises, without the place.
    """
    with tempfile.TemporaryDirectory(prefix="trialfleet-package-") as made:
        root = Path(made).resolve() / "files"
        write_files(root, unpack(package, max_bytes))
        try:
            yield _as_found_in(root, spec), root
        except InvalidInputError as error:
            raise type(error)(str(error).replace(f"{root}/", "")) from error
        finally:
            durable.remove(root)  # its folders cannot be written to


def _as_found_in(root: Path, spec: StudySpec) -> StudySpec:
    if not is_shipped(spec.objective, root):
        raise InvalidInputError(
            f"objective = {spec.objective!r}: its module is not among `code.ship` ="
            f" {spec.code.ship}; name its file there"
        )
    is_file = spec.objective.rpartition(":")[0].endswith(".py")
    here = f"{root}/{spec.objective}" if is_file else spec.objective
    return spec.model_copy(update={"objective": here})


def collect(folder: Path, names: Sequence[str], max_bytes: int) -> dict[str, PackedFile]:
    """The files that travel, by their paths below a folder.

    Args:
        folder: The study file's.
        names: Files and folders below it. Of folders, what git ignores, caches, virtual
            environments, what tools keep for themselves and what usually holds secrets stay here.
        max_bytes: What all files together may have.

    Raises:
        InvalidInputError: The message names the file, what is wrong with it, and the way out.
    """
    collection = _Collection(folder, max_bytes)
    for name in names:
        collection.add(name)
    return collection.files


class _Collection:
    """Files below one folder, as they are found."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder.absolute()
        self._root = folder.resolve()
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._ignored = _Ignored(self._folder)
        self.files: dict[str, PackedFile] = {}

    def add(self, name: str) -> None:
        """Take a file, or what a folder holds."""
        if Path(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            raise _refusal(name, f"give a path below {self._folder}, the study file's folder")
        path = self._folder / name
        if not os.path.lexists(path):
            siblings = path.parent.iterdir() if path.parent.is_dir() else ()
            meant = nearest(path.name, [each.name for each in siblings])
            raise _refusal(name, f"there is no {path}{meant}")
        if not path.resolve().is_relative_to(self._root):
            raise self._stray(path)
        if path.is_dir():
            before = len(self.files)
            self._walk(path)
            if len(self.files) == before and not self._has_below(path):
                raise _refusal(name, "it holds no file that is not ignored; leave it out")
        else:
            self._take(path)

    def _has_below(self, path: Path) -> bool:
        prefix = path.relative_to(self._folder).as_posix()
        return any(prefix == "." or name.startswith(f"{prefix}/") for name in self.files)

    def _walk(self, folder: Path) -> None:
        for path in sorted(folder.iterdir()):
            if path.name in _RUBBISH or path.suffix == ".pyc" or path.name.endswith(".egg-info"):
                continue
            if _is_private(path):
                continue
            is_folder = path.is_dir()
            if (path / _ENVIRONMENT).exists() or self._ignored.has(path, is_folder=is_folder):
                continue
            if is_folder and path.is_symlink():
                raise _refusal(
                    self._name(path), f"it is a link to a folder, {path.resolve()}: name that"
                )
            if is_folder:
                self._walk(path)
            else:
                self._take(path)

    def _take(self, path: Path) -> None:
        name = self._name(path)
        if name in self.files:
            return
        if not path.exists():
            raise _refusal(name, f"it is a link to {path.readlink()}, which is not there")
        if not path.resolve().is_relative_to(self._root):
            raise self._stray(path)
        if not path.is_file():
            raise _refusal(name, "it is no plain file; leave it out")
        try:
            status = path.stat()
            self._count(name, status.st_size)
            content = path.read_bytes()
        except OSError as error:
            raise _refusal(name, f"it cannot be read: {error}") from error
        self.files[name] = PackedFile(content, bool(status.st_mode & 0o100))

    def _count(self, name: str, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise _refusal(
                name,
                f"it has {num_bytes} bytes, and with it {self._num_bytes} are to travel, more than"
                f" FLEET_CODE_SIZE = {self._max_bytes}: leave it out (trials read data better from"
                " where the workers have it), or raise FLEET_CODE_SIZE here, at the orchestrator"
                " and at the workers",
            )
        if len(self.files) == MAX_FILES:
            raise _refusal(name, f"it is one more than {MAX_FILES} files; leave some out")

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _stray(self, path: Path) -> InvalidInputError:
        return _refusal(
            self._name(path),
            f"it is {path.resolve()}, outside of {self._folder}: copy it there, or leave it out",
        )


def _is_private(path: Path) -> bool:
    name = path.name.lower()
    # a module is none: `id_mapping.py` is imported, and a package `wandb` would hold modules
    if name.startswith("id_") and path.is_dir():
        return False
    return not name.endswith(".py") and any(fnmatchcase(name, each) for each in _PRIVATE)


def told_of(root: Path) -> str:
    """How much travels with a study, whose package is unpacked there, for people."""
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    return f"code.ship: files that travel with the study: {len(sizes)}, of {sum(sizes)} bytes"


def _refusal(name: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"code.ship = {name!r}: {problem}")


class _Ignored:
    """What git would ignore below a folder: by all `.gitignore` of its tree, and its own list."""

    def __init__(self, folder: Path) -> None:
        tree = [folder, *folder.parents]
        self._top = next((each for each in tree if (each / ".git").exists()), folder)
        self._own = _read_spec(_excluded_in(self._top / ".git"))
        self._specs: dict[Path, GitIgnoreSpec] = {}

    def has(self, path: Path, *, is_folder: bool) -> bool:
        """Whether a file or a folder is ignored, whose folder is not."""
        # whatever a `.gitignore` says comes before the clone's own list
        name = path.relative_to(self._top).as_posix() + "/" * is_folder
        is_ignored = bool(self._own.check_file(name).include)
        for folder in reversed(path.relative_to(self._top).parents):
            place = self._top / folder
            name = path.relative_to(place).as_posix() + "/" * is_folder
            said = self._spec_of(place).check_file(name).include
            is_ignored = is_ignored if said is None else said
        return is_ignored

    def _spec_of(self, folder: Path) -> GitIgnoreSpec:
        if folder not in self._specs:
            self._specs[folder] = _read_spec(folder / ".gitignore")
        return self._specs[folder]


def _read_spec(file: Path) -> GitIgnoreSpec:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return GitIgnoreSpec.from_lines(lines)


def _excluded_in(git: Path) -> Path:
    """Where a clone keeps its own list of what is ignored; a work tree's is its clone's."""
    if git.is_file():
        named = git.read_text(errors="replace").strip().removeprefix("gitdir:").strip()
        git = git.parent / named
        common = git / "commondir"
        git = git / common.read_text(errors="replace").strip() if common.is_file() else git
    return git / "info" / "exclude"
