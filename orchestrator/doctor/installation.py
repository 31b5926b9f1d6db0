"""What is installed here: versions against what this release asks for, and what a study needs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Final

from packaging.requirements import Requirement

from orchestrator.doctor.findings import Finding, error, ok, warning
from workers.installed import missing
from workers.protocol.spec import StudySpec
from workers.settings import Settings, mistyped_variables

_PACKAGE: Final = "trialfleet"


@dataclass(frozen=True)
class InstallationFacts:
    """What was seen of an environment."""

    release: str
    python: str
    #: Packages that are not as asked for: name, version or None, and what is asked for.
    unfit: tuple[tuple[str, str | None, str], ...] = ()
    #: Extras that settings or the study ask for and that are not installed, each with who asks.
    wanted_extras: tuple[tuple[str, str], ...] = ()
    #: What runs trials and is not installed.
    missing_for_trials: tuple[str, ...] = ()
    #: Variables that are nobody's, each with the setting's that was probably meant.
    mistyped: Mapping[str, str] = field(default_factory=dict)
    is_linux: bool = True


def look(settings: Settings, spec: StudySpec | None = None) -> InstallationFacts:
    """See what is installed."""
    return InstallationFacts(
        release=version(_PACKAGE),
        python=platform.python_version(),
        unfit=tuple(_unfit()),
        wanted_extras=tuple(
            (extra, who)
            for module, extra, who in _wanted(settings, spec)
            if find_spec(module) is None
        ),
        missing_for_trials=tuple(missing()),
        mistyped=mistyped_variables(),
        is_linux=sys.platform == "linux",
    )


def packages(facts: InstallationFacts) -> Iterator[Finding]:
    """Whether each package is of a version that this release was made for."""
    for name, found, asked in facts.unfit:
        told = "is not installed" if found is None else f"is {found}"
        yield error(name, f"{told}; this release needs {asked}", f"pip install '{asked}'")
    if not facts.unfit:
        yield ok("packages", f"trialfleet {facts.release} on Python {facts.python}, as it needs")


def extras(facts: InstallationFacts) -> Iterator[Finding]:
    """Whether what settings and the study ask for is there."""
    for extra, who in facts.wanted_extras:
        told = f"{who} needs trialfleet[{extra}], which is not installed"
        yield error("extras", told, f"pip install 'trialfleet[{extra}]'")


def trials_here(facts: InstallationFacts) -> Iterator[Finding]:
    """Whether this host can run trials."""
    if facts.missing_for_trials:
        lacking = ", ".join(facts.missing_for_trials)
        yield ok("trials", f"not on this host, which lacks {lacking} (trialfleet[worker])")
    else:
        yield ok("trials", "can run on this host")


def system(facts: InstallationFacts) -> Iterator[Finding]:
    """Whether workers can run on this system for good."""
    if not facts.is_linux:
        told = "this is no Linux: `trialfleet run` works for trying things out, and no more"
        yield warning("system", told, "run workers and `trialfleet serve` on Linux")


def variables(facts: InstallationFacts) -> Iterator[Finding]:
    """Whether a variable was to be a setting, and is none."""
    for variable, meant in facts.mistyped.items():
        told = f"no setting is called so; {meant} has its default"
        yield warning(variable, told, f"set {meant}, or unset {variable}")


CHECKS: Final[tuple[Callable[[InstallationFacts], Iterator[Finding]], ...]] = (
    packages, extras, trials_here, system, variables,
)  # fmt: skip


def _unfit() -> Iterator[tuple[str, str | None, str]]:
    """Of what is asked for without an extra; and of an extra, what is installed."""
    for line in requires(_PACKAGE) or []:
        requirement = Requirement(line)
        plain = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        asked = f"{requirement.name}{requirement.specifier}"
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            if plain:
                yield requirement.name, None, asked
            continue
        if not requirement.specifier.contains(found, prereleases=True) and (
            plain or 'extra == "dev"' not in str(requirement.marker)
        ):
            yield requirement.name, found, asked


def _wanted(settings: Settings, spec: StudySpec | None) -> Iterator[tuple[str, str, str]]:
    """Modules that are asked for, each with its extra and who asks."""
    if settings.metrics_port is not None:
        yield "prometheus_client", "metrics", "FLEET_METRICS_PORT"
    if (settings.store or "").startswith("s3:"):
        yield "s3fs", "s3", "FLEET_STORE"
    if (settings.storage or "").startswith("postgresql"):
        yield "psycopg", "postgres", "FLEET_STORAGE"
    if spec is None:
        return
    sampler = spec.sampler.type
    if sampler == "cmaes":
        yield "cmaes", "samplers", f"sampler.type = {sampler!r}"
    if sampler in {"gp", "qmc"}:
        yield "scipy", "samplers", f"sampler.type = {sampler!r}"
    if spec.sampler.engine == "rust":
        yield "rustuna", "rust", "sampler.engine = 'rust'"
    if spec.config.get("lora"):
        yield "peft", "peft", "config.lora"
