"""Makes text from a cluster safe to print on a terminal."""

import unicodedata


def printable(text: str) -> str:
    """Replaces characters that a terminal would obey: control characters, and changes of reading direction."""

    def harmless(character: str) -> bool:
        return character in "\n\t" or not unicodedata.category(character).startswith("C")

    return "".join(character if harmless(character) else "\ufffd" for character in text)
