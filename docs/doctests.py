"""For the build of the pages: an example in a docstring is shown as code, not as a quotation."""

import re
from typing import Any

import griffe

#: A line that begins with ``>>>``, and all that follow it up to an empty one.
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts fences around examples."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None and "```" not in obj.docstring.value:
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
