#!/usr/bin/env python
"""Writes the users of a fleet's Redis, each with the rights of its role and no others.

Each password is the first line of a file `redis-USER` in a folder; one that is not there is drawn,
and the file made for its owner alone. The users' file holds their sums, and no password.

    python ops/deploy/redis/make_users.py SECRETS > users.acl

Users: `worker`, `orchestrator`, `user` (commands and scripts), `viewer` (commands that only look),
`operator` (all rights: back-ups, `valkey-cli`), `metrics` (INFO and PING: health checks,
exporters), `replica` (a server that follows this one) and `sentinel`; `default` is off.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from pathlib import Path
from typing import Final

from workers.coordination.rights import Role, rights_of

#: Users that are no member of the fleet, with their rules.
OTHERS: Final = {
    "operator": "~* &* +@all",
    "metrics": "resetchannels +info +ping",
    "replica": "resetchannels +psync +replconf +ping",
    "sentinel": "resetchannels &__sentinel__:hello +multi +exec +ping +info +role +publish"
    " +subscribe +slaveof +config|rewrite +client|setname +client|kill +script|kill",
}


def main() -> None:
    """Print the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("secrets", type=Path, help="the folder of the passwords")
    folder: Path = parser.parse_args().secrets
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    rules = {role.value: rights_of(role).rules for role in Role} | OTHERS
    lines = [
        f"user {user} reset on #{_digest(_password(folder / f'redis-{user}'))} {allowed}"
        for user, allowed in rules.items()
    ]
    sys.stdout.write("\n".join(["user default reset off", *lines]) + "\n")


def _password(path: Path) -> str:
    """The password in a file, which is made if it is not there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        password = path.read_text().split("\n", 1)[0].strip()
        if not password:
            sys.exit(f"{path}: it holds no password; write one into its first line, or remove it")
        return password
    password = secrets.token_hex(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(password + "\n")
    return password


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


if __name__ == "__main__":
    main()
