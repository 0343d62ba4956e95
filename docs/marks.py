"""Parts of pages that are made: each stands between two comments that name it and its command."""

import re
from collections.abc import Mapping


def filled(text: str, parts: Mapping[str, str], command: str) -> str:
    """Returns a page with its parts as they are made now.

    Args:
        text: The page.
        parts: Name of a part -> Markdown.
        command: What makes them, as the comment in front of each says.

    Raises:
        ValueError: If a part has not exactly one place.
    """
    for name, made in parts.items():
        start, end = f"<!-- {name}: made by `{command}` -->", f"<!-- end of {name} -->"
        block = f"{start}\n{made}\n{end}"
        pattern = re.escape(start) + ".*?" + re.escape(end)
        text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"The page has {count} places for {name}; expected {start} ... {end}.")
    return text
