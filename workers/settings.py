"""Frozen settings, read once from the environment at an entry point and handed down."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from workers.passwords import HIDDEN, has_password, hide, learn, learn_from
from workers.protocol.durations import parse_duration
from workers.protocol.errors import InvalidInputError
from workers.protocol.seals import MIN_CHARACTERS, Seal, secrets_in
from workers.times import Times

#: Of `FLEET_ACCEPT_CODE`: whatever the fleet's secret has signed.
SIGNED: Final = "signed"


class Settings(BaseModel):
    """What a process needs to know of its surroundings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    redis_url: str | None = Field(default=None, repr=False)
    """`FLEET_REDIS_URL`: the fleet's Redis, as `redis://`, `rediss://`, `unix://` or, by its
    sentinels, `sentinel://host:26379,host:26379/0?service=NAME`; without it, the embedded one of
    `home`."""
    storage: str | None = Field(default=None, repr=False)
    """`FLEET_STORAGE`: an Optuna storage URL; without it, a journal file a study under `home`."""
    home: Path = Field(default=Path("~/.trialfleet"), validate_default=True)
    """`FLEET_HOME`: journals, checkpoints, results; what must not be lost."""
    store: str | None = None
    """`FLEET_STORE`: `s3://bucket/prefix` or `file:///path`, where workers bring checkpoints and
    results, for workers and people that do not share a disk with them. Credentials are those of the
    environment (`AWS_ACCESS_KEY_ID`, a profile, a role), and never part of it."""
    store_endpoint: str | None = None
    """`FLEET_STORE_ENDPOINT`: the URL of an S3 server other than Amazon's; by default
    `AWS_ENDPOINT_URL`."""
    cache: Path = Field(
        default_factory=lambda known: _default_cache(known.get("home")), validate_default=True
    )
    """`FLEET_CACHE`: tokenised data, trained tokenizers and compiled models, which can be built
    again; by default where this user's caches lie, and without a home directory below `home`. Hosts
    may share it, on a disk that has locks."""
    cache_size: ByteSize = Field(default=ByteSize(50 * 10**9))
    """`FLEET_CACHE_SIZE`: bytes that the cache may take, such as `200GB`; what was not used for the
    longest goes first."""
    cache_age: float = Field(default=30 * 86400.0, ge=0.0)
    """`FLEET_CACHE_AGE`: seconds, or `30d`, since its last use, after which an entry goes."""
    slots: int | None = Field(default=None, ge=1)
    """`FLEET_SLOTS`: pool processes of a worker; by default its GPUs, else two, else one."""
    objectives: tuple[str, ...] = ()
    """`FLEET_OBJECTIVES`: modules and files that a worker may import objectives from: separated by
    commas, or, where a name holds one, a JSON list."""
    samplers: tuple[str, ...] = ()
    """`FLEET_SAMPLERS`: modules that the orchestrator, and whoever hands a study in, may import
    samplers and pruners from (`sampler: {type: "module:Class"}`); written as `FLEET_OBJECTIVES`."""
    secret_file: Path | None = None
    """`FLEET_SECRET_FILE`: a file that holds what `FLEET_SECRET` would."""
    secret: SecretStr | None = Field(default=None, validate_default=True)
    """`FLEET_SECRET`: signs what workers act on; they refuse what is not signed. Several, separated
    by commas or lines, to change it: the first signs, all are accepted."""
    accept_code: tuple[str, ...] = ()
    """`FLEET_ACCEPT_CODE`: `signed` has a worker take code that travels with studies and is signed
    by the fleet's secret; digests have it take those packages. Written as `FLEET_OBJECTIVES`."""
    code_size: ByteSize = Field(default=ByteSize(10 * 10**6))
    """`FLEET_CODE_SIZE`: bytes that the code of one study may have to travel, such as `20MB`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """`FLEET_LOG_LEVEL`: at `info` a worker tells of each trial how it ended, at `debug` all it
    does."""
    on_end: tuple[str, ...] = ()
    """`FLEET_ON_END`: commands that the orchestrator may run where a study has ended, beginnings of
    URLs that it may post to, or `*` for whatever studies name; written as `FLEET_OBJECTIVES`."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """`FLEET_METRICS_PORT`: where an orchestrator, or a worker, tells Prometheus how it gets on; 0
    for any that is free, which the log names. Without it, nowhere."""
    metrics_host: str = "127.0.0.1"
    """`FLEET_METRICS_HOST`: the address that it listens at; by default, for this host alone."""
    celery_events: bool = False
    """`FLEET_CELERY_EVENTS`: whether workers send Celery's own events, for Flower and its like."""
    time_scale: float = Field(default=1.0, gt=0.0)
    """`FLEET_TIME_SCALE`: multiplies every interval of the protocol; for tests."""

    @field_validator("redis_url", "storage", mode="after")
    @classmethod
    def _kept_secret(cls, value: str | None) -> str | None:
        learn_from(value)
        return value

    @field_validator("secret_file", mode="before")
    @classmethod
    def _names_a_file(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("it is set and empty; give it a file, or leave it out")
        return value

    @field_validator("secret", mode="before")
    @classmethod
    def _read_secret(cls, value: Any, info: ValidationInfo) -> Any:
        file = info.data.get("secret_file")
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and not text.strip():
            raise ValueError(
                "it is set and empty; give it the fleet's secret, or leave it out for a fleet that"
                " has none"
            )
        if file is None:
            return value
        if value:
            raise ValueError("FLEET_SECRET_FILE is given, too; give one of them")
        try:
            return Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"FLEET_SECRET_FILE={file} cannot be read: {error}") from error

    @field_validator("secret", mode="after")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        secrets = secrets_in(value.get_secret_value())
        for each in secrets:
            learn(each)
        if not secrets or min(map(len, secrets)) < MIN_CHARACTERS:
            raise ValueError(
                f"each secret needs {MIN_CHARACTERS} characters or more; `openssl rand -hex 32`"
                " makes one"
            )
        return value

    @field_validator("home", "cache", mode="after")
    @classmethod
    def _absolute(cls, value: Path, info: ValidationInfo) -> Path:
        try:
            return value.expanduser().absolute()
        except RuntimeError as error:  # no HOME, and no passwd entry
            raise ValueError(
                f"this user has no home directory; set FLEET_{str(info.field_name).upper()} to a"
                " directory"
            ) from error

    @field_validator("store", mode="after")
    @classmethod
    def _is_a_store(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.password or parts.username:
            learn_from(value)
            raise ValueError("leave credentials to the environment, such as AWS_ACCESS_KEY_ID")
        is_bucket = parts.scheme == "s3" and bool(parts.netloc)
        is_folder = parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")
        if not (is_bucket or is_folder) or parts.query or parts.fragment:
            raise ValueError("write s3://bucket/prefix or file:///path")
        return value.rstrip("/")

    @field_validator("store_endpoint", mode="after")
    @classmethod
    def _is_a_server(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "http://host")
        if parts.scheme not in {"http", "https"} or not parts.netloc or "@" in parts.netloc:
            learn_from(value)
            raise ValueError("write http://host:port or https://host, without credentials")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("accept_code")
    @classmethod
    def _signed_or_digests(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each != SIGNED and not re.fullmatch("[0-9a-f]{64}", each):
                raise ValueError(f"{each!r} is neither {SIGNED!r} nor the digest of a package")
        return value

    @field_validator("cache_age", mode="before")
    @classmethod
    def _parse_age(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    def check_worker(self) -> None:
        """Refuse what no worker can do its part with.

        Raises:
            InvalidInputError: It is to take signed code, and has no secret to tell it by.
        """
        if SIGNED in self.accept_code and self.secret is None:
            raise InvalidInputError(
                f"FLEET_ACCEPT_CODE={SIGNED} needs FLEET_SECRET (or FLEET_SECRET_FILE): set that"
                " which studies are handed in with"
            )

    def storage_of(self, study: str) -> str:
        """The Optuna storage of a study's results, where these settings are the orchestrator's."""
        return self.storage or f"journal://{self.home / 'studies' / study / 'journal.log'}"

    @property
    def seal(self) -> Seal:
        """What signs, and checks, by the secrets of this fleet."""
        return Seal.of(None if self.secret is None else self.secret.get_secret_value())

    @property
    def times(self) -> Times:
        """The protocol's intervals."""
        return _scaled(self.time_scale)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read the `FLEET_*` variables.

        Raises:
            InvalidInputError: A variable holds what its setting does not take.
        """
        given: dict[str, Any] = {
            name: environment[variable]
            for name in cls.model_fields
            if environment.get(variable := f"FLEET_{name.upper()}")
            # unset by mistake, these must not open a fleet to everybody
            or (name in _NEVER_EMPTY and variable in environment)
        }
        for name in {"objectives", "samplers", "on_end", "accept_code"} & given.keys():
            given[name] = _read_list(f"FLEET_{name.upper()}", given[name])
        return cls.build(given)

    @classmethod
    def build(cls, config: Settings | Mapping[str, Any] | None) -> Settings:
        """Take settings as they are, as a mapping of fields, or (None) from the environment.

        Raises:
            InvalidInputError: A field is unknown or holds what it does not take.
        """
        if config is None:
            return cls.from_environment()
        if isinstance(config, Settings):
            return config
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            for value in dict(config).values():
                learn_from(value if isinstance(value, str) else None)
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            shown = HIDDEN if name == "secret" else hide(repr(first["input"]))
            raise InvalidInputError(
                f"setting {name} (FLEET_{name.upper()}) = {shown}:"
                f" {first['msg']}; the settings are {', '.join(cls.model_fields)}"
            ) from None  # it shows the values

    def to_environment(self) -> dict[str, str]:
        """The variables that make a child process read these settings back."""
        values = {name: value for name, value in self if value not in {None, ()}}
        values["objectives"] = write_list(self.objectives)
        if self.secret is not None:  # where it is in a file, each process reads that
            values.pop("secret")
            if self.secret_file is None:
                values["secret"] = self.secret.get_secret_value()
        for name in ("samplers", "on_end", "accept_code"):
            if given := getattr(self, name):
                values[name] = write_list(given)
        return {f"FLEET_{name.upper()}": str(value) for name, value in values.items()}


def forget_secret() -> None:
    """Take the secret from the environment, before code runs that is not the fleet's own."""
    os.environ.pop("FLEET_SECRET", None)


def environment_without_secrets() -> dict[str, str]:
    """The environment for processes that run what is not the fleet's own.

    They have neither its secret nor what opens its Redis, its storage and its store.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if name != "FLEET_SECRET" and not (name.startswith("FLEET_") and has_password(value))
    }


#: Variables of the fleet's that are no settings: of a command, and of processes to their children.
_OTHERS: Final = frozenset(
    {"DASHBOARD_TOKEN", "DRAIN_FILE", "GPU_LOCKS", "IMPORTING", "QUEUES", "SCRATCH_ROOT", "STUDY"}
)


def mistyped_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables that are nobody's, each with the setting's that was probably meant."""
    settings = {name.upper() for name in Settings.model_fields}
    found = {}
    for variable in environment:
        prefix, _, name = variable.partition("FLEET_")
        if prefix or name in settings | _OTHERS:
            continue
        if meant := difflib.get_close_matches(name.upper(), settings, n=1, cutoff=0.7):
            found[variable] = f"FLEET_{meant[0]}"
    return found


#: Settings that are refused where their variable is empty.
_NEVER_EMPTY: Final = frozenset({"secret", "secret_file"})


@lru_cache
def _scaled(time_scale: float) -> Times:
    """The intervals by a scale: asked for thousands of times a second beside many studies."""
    return Times().scaled(time_scale)


def _default_cache(home: Path | None) -> Path:
    try:
        return platformdirs.user_cache_path("trialfleet").expanduser()
    except RuntimeError:  # no HOME, and no passwd entry
        return (home or Path("~/.trialfleet")) / "cache"


def write_list(entries: Sequence[str]) -> str:
    """A list as one variable of the environment holds it."""
    if any("," in entry or entry.startswith("[") for entry in entries):
        return json.dumps(list(entries))
    return ",".join(entries)


def _read_list(variable: str, text: str) -> tuple[str, ...]:
    if text.lstrip().startswith("["):
        try:
            return tuple(map(str, json.loads(text)))
        except ValueError as error:
            raise InvalidInputError(
                f"{variable}={text!r} is no JSON list: {error}; write"
                ' ["/a/train.py"], or names separated by commas'
            ) from error
    return tuple(filter(None, map(str.strip, text.split(","))))
