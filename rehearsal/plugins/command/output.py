"""A command's output, stored for the state and for errors, and logged line by line while the command runs."""

import codecs
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Log = Callable[[str], Awaitable[None]]
Refusal = Callable[[str], str]
Found = tuple[str, str]  # a property, and the problem with it
TAIL = 100  # number of output lines in a failed command's error


class CommandError(Exception):
    """An operation failed. The message is for the user."""


def refusal(plugin: str, remedy: str = "install the official plugin") -> Refusal:
    """The message of a stand-in about an unsupported feature."""
    return lambda what: f"the stand-in for {plugin} does not support {what}; {remedy}"


class Reader(Protocol):
    async def read(self, n: int) -> bytes: ...


class Output:
    def __init__(self, logging: str, log: Log) -> None:
        self._shown = {"stdout": ["stdout"], "stderr": ["stderr"], "none": []}.get(logging, ["stdout", "stderr"])
        self._log = log
        self._text = {"stdout": "", "stderr": ""}
        self._both: list[str] = []

    async def follow(self, reader: Reader, stream: str) -> None:
        """Read one of the command's streams to its end."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces: list[str] = []
        line = ""
        while data := await reader.read(65536):
            text = decoder.decode(data)
            pieces.append(text)
            self._both.append(text)
            if stream in self._shown:
                *lines, line = (line + text).split("\n")
                for complete in lines:
                    await self._log(complete)
        if line:
            await self._log(line)
        self._text[stream] = "".join(pieces)

    def properties(self) -> dict[str, Any]:
        return {stream: text.removesuffix("\n") for stream, text in self._text.items()}

    def error(self, what_happened: str, script: str) -> CommandError:
        lines = "".join(self._both).splitlines()
        left_out = [f"... ({len(lines) - TAIL} lines omitted)"] if len(lines) > TAIL else []
        quoted = json.dumps(script, ensure_ascii=False)
        return CommandError("\n".join([f"{what_happened}: running {quoted}:", *left_out, *lines[-TAIL:]]))
