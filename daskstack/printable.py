"""Text of a cluster on a terminal."""

import unicodedata


def printable(text: str) -> str:
    """The text without what a terminal would obey: control characters, and those that turn the reading direction."""

    def harmless(character: str) -> bool:
        return character in "\n\t" or not unicodedata.category(character).startswith("C")

    return "".join(character if harmless(character) else "\ufffd" for character in text)
