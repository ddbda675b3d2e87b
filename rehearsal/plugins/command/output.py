"""What a command writes: kept for the state and for errors, and shown line by line while the command runs."""

import codecs
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

Log = Callable[[str], Awaitable[None]]
Refusal = Callable[[str], str]
Found = tuple[str, str]  # a property, and what is wrong with it
TAIL = 100  # lines of a failed command's output that its error shows


class CommandError(Exception):
    """An operation failed for a reason that the text tells its user."""


class PartialError(CommandError):
    """The resource is there, in the state of `outputs`, but not as it should be."""

    def __init__(self, message: str, identity: str, outputs: dict[str, Any]) -> None:
        super().__init__(message)
        self.identity, self.outputs = identity, outputs


def refusal(plugin: str, remedy: str = "install the official plugin") -> Refusal:
    """How a stand-in says that it does not do a thing."""
    return lambda what: f"the stand-in for {plugin} does not know {what}; {remedy}"


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
        left_out = [f"... ({len(lines) - TAIL} lines before)"] if len(lines) > TAIL else []
        quoted = json.dumps(script, ensure_ascii=False)
        return CommandError("\n".join([f"{what_happened}: running {quoted}:", *left_out, *lines[-TAIL:]]))
