"""A proxy before Redis that notes the commands which pass through it."""

from __future__ import annotations

from collections.abc import Iterator

from redis_proxy import RedisProxy, Relay


class RecordingProxy(RedisProxy):
    """Keeps what every client asks."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self._streams: list[_Record] = []

    def relay(self) -> Relay:
        self._streams.append(record := _Record())
        return record

    def commands(self) -> Iterator[list[str]]:
        """All whole commands that were sent, each as its words."""
        for record in list(self._streams):
            yield from _commands(bytes(record.stream))


class _Record(Relay):
    def __init__(self) -> None:
        self.stream = bytearray()

    def asks(self, request: bytes) -> None:
        self.stream += request


def _commands(stream: bytes) -> Iterator[list[str]]:
    """Requests as clients write them: arrays of counted strings."""
    at = 0
    while at < len(stream):
        words: list[str] = []
        try:
            num_words, at = _number(stream, at)
            for _ in range(num_words):
                size, at = _number(stream, at)
                words.append(stream[at : at + size].decode(errors="replace"))
                at += size + 2
        except ValueError:
            return  # the connection ended in the middle of it
        yield words


def _number(stream: bytes, at: int) -> tuple[int, int]:
    """The count behind `*` or `$`, and where its line ends."""
    end = stream.index(b"\r\n", at)
    return int(stream[at + 1 : end]), end + 2
