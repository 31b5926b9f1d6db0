"""A primary, its replica, and three sentinels that watch them, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

import redis
from waiting import wait_until

from orchestrator.local.servers import find_servers, free_port, start_process, stop_process

#: What the sentinels call the two servers.
SERVICE = "fleet"

#: The halves of a certificate, by what configurations call them.
_FILES = {"cert": "crt", "key": "key"}

_SENTINEL = """
sentinel monitor {service} 127.0.0.1 {primary} 2
sentinel auth-pass {service} {password}
sentinel down-after-milliseconds {service} 2000
sentinel failover-timeout {service} 6000
sentinel sentinel-pass {sentinel_password}
requirepass {sentinel_password}
"""


class SentinelServers:
    """Two servers of which one follows the other, and the sentinels, with passwords.

    Args:
        folder: For their files.
        tls: Where `ca.crt`, `server.crt` and `server.key` lie of all; else there is no TLS.
        binary: Which server to start; by default the last that is found.
    """

    password = "of-the-servers-s3cret"
    sentinel_password = "of-the-sentinels-s3cret"

    def __init__(self, folder: Path, tls: Path | None = None, binary: Path | None = None) -> None:
        self._tls, self._binary = tls, binary or find_servers()[-1]
        self.folder = folder / "servers"
        self.ports = [free_port(), free_port()]
        self.sentinel_ports = [free_port(), free_port(), free_port()]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """As a fleet is told of them."""
        places = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        query = f"service={SERVICE}&sentinel_password={self.sentinel_password}"
        if self._tls is not None:
            query += f"&ssl_ca_certs={self._tls}/ca.crt"
        scheme = "sentinel" if self._tls is None else "rediss+sentinel"
        return f"{scheme}://:{self.password}@{places}/0?{query}"

    def start(self) -> Self:
        """Start all, and wait until the sentinels know of one another and of the replica."""
        for port in self.ports:
            self.start_server(port)
        for port in self.sentinel_ports:
            told = _SENTINEL.format(
                service=SERVICE,
                primary=self.ports[0],
                password=self.password,
                sentinel_password=self.sentinel_password,
            )
            self._start(port, told, "--sentinel")
            self._hurry(port)
        wait_until(self._is_whole, "the sentinels know one another and the replica")
        return self

    def start_server(self, port: int) -> None:
        """Start one of the two servers, as it was configured first."""
        follows = f"replicaof 127.0.0.1 {self.ports[0]}" if port != self.ports[0] else ""
        own = [
            f"requirepass {self.password}", f"masterauth {self.password}", follows,
            "repl-diskless-sync-delay 0", "appendonly yes", 'save ""',
        ]  # fmt: skip
        self._start(port, "\n".join(own))

    def primary(self) -> int:
        """The port of the server that the sentinels take for the primary."""
        with self._sentinel(self.sentinel_ports[0]) as sentinel:
            found = sentinel.sentinel_get_master_addr_by_name(SERVICE)
        return int(found[1])

    def fail_over(self) -> None:
        """Have the sentinels make the replica the primary, while all are well."""
        with self._sentinel(self.sentinel_ports[0]) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER", SERVICE)

    def watch(self, port: int) -> None:
        """Have the sentinels take a server for the primary, and cut nobody's connections."""
        for each in self.sentinel_ports:
            with self._sentinel(each) as sentinel:
                sentinel.sentinel_remove(SERVICE)
                sentinel.sentinel_monitor(SERVICE, "127.0.0.1", port, 2)
                sentinel.sentinel_set(SERVICE, "auth-pass", self.password)

    def await_failover(self, before: int) -> None:
        """Wait until another one is the primary, and takes writes."""
        other = next(port for port in self.ports if port != before)

        def is_promoted() -> bool:
            return self.primary() == other and self.role(other) == "master"

        wait_until(is_promoted, "the replica is promoted")

    def role(self, port: int) -> str:
        """What a server takes itself for."""
        with self.client(port) as client:
            return str(client.info("replication")["role"])

    def follows(self, port: int) -> bool:
        """Whether a server has all that the primary has, and goes on with it."""
        try:
            with self.client(port) as client:
                told = client.info("replication")
        except redis.RedisError:
            return False
        return told["role"] == "slave" and told["master_link_status"] == "up"

    def knows_replica(self, port: int) -> bool:
        """Whether the sentinel that is asked first counts a server among the replicas."""
        with self._sentinel(self.sentinel_ports[0]) as sentinel:
            return any(each["port"] == port for each in sentinel.sentinel_slaves(SERVICE))

    def is_followed(self, port: int) -> bool:
        """Whether a primary knows of a replica that has all that it has."""
        with self.client(port) as client:
            return bool(client.info("replication").get("slave0", {}).get("state") == "online")

    def cut_off(self, port: int) -> None:
        """Have the replica hear of nothing more that the primary is told."""
        with self.client(port) as replica:
            replica.config_set("masterauth", "another")
        with self.client(self.primary()) as primary:
            primary.execute_command("CLIENT KILL TYPE replica")

    def signal(self, port: int, number: int) -> None:
        """Signal a server."""
        os.kill(self._processes[port].pid, number)
        if number == signal.SIGKILL:
            self._processes[port].wait()

    def client(self, port: int) -> redis.Redis:
        """A client of one of the two, whatever it is."""
        return self._client(port, self.password)

    def stop(self) -> None:
        """End all, those that stand still, too."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
            stop_process(process, signal.SIGKILL, 60.0)
        self._processes.clear()

    def _start(self, port: int, told: str, *options: str) -> None:
        folder = self.folder / str(port)
        folder.mkdir(parents=True, exist_ok=True)
        # sentinels, and servers at a fail-over, write there what has become of them
        path = folder / "server.conf"
        if not path.exists():
            path.write_text(f"{self._listen(port)}\nbind 127.0.0.1\ndir {folder}\n{told}\n")
        with (folder / "server.log").open("ab") as sink:
            command = [str(self._binary), str(path), *options]
            self._processes[port] = start_process(
                command, env={"LANG": "C"}, stdin=subprocess.DEVNULL, output=sink
            )

    def _listen(self, port: int) -> str:
        if self._tls is None:
            return f"port {port}"
        files = [f"tls-{what}-file {self._tls}/server.{end}" for what, end in _FILES.items()]
        lines = ["port 0", f"tls-port {port}", "tls-replication yes", "tls-auth-clients no", *files]
        return "\n".join([*lines, f"tls-ca-cert-file {self._tls}/ca.crt"])

    def _client(self, port: int, password: str) -> redis.Redis:
        tls = {} if self._tls is None else {"ssl": True, "ssl_ca_certs": f"{self._tls}/ca.crt"}
        return redis.Redis("127.0.0.1", port, password=password, decode_responses=True, **tls)

    def _hurry(self, port: int) -> None:
        """Have a sentinel look at servers, and tell others, more often than each ten seconds."""

        def is_set() -> bool:
            try:
                with self._sentinel(port) as sentinel:
                    faster = ("info-period", 500, "publish-period", 500, "ask-period", 500)
                    return bool(sentinel.execute_command("SENTINEL DEBUG", *faster))
            except redis.RedisError:
                return False

        wait_until(is_set, "a sentinel answers")

    def _sentinel(self, port: int) -> redis.Redis:
        return self._client(port, self.sentinel_password)

    def _is_whole(self) -> bool:
        return all(map(self._knows_all, self.sentinel_ports))

    def _knows_all(self, port: int) -> bool:
        try:
            with self._sentinel(port) as sentinel:
                state: dict[str, Any] = sentinel.sentinel_master(SERVICE)
                replicas: list[dict[str, Any]] = sentinel.sentinel_slaves(SERVICE)
        except redis.RedisError:
            return False
        is_linked = [each.get("master-link-status") for each in replicas] == ["ok"]
        return is_linked and state["num-other-sentinels"] == 2
