"""How prompts are read: one file a syntax. Importing this package imports none of them.

Name one as ``pipe(…, prompt_syntax="a1111")``; a prompt is then read at any length, too.
"""

import re
from pathlib import Path

_CLASS = re.compile(r"^class ([A-Z]\w*)\(Syntax\):", re.MULTILINE)

#: File to the syntaxes that it defines.
FILES = {
    file.stem: tuple(_CLASS.findall(file.read_text(encoding="utf-8")))
    for file in sorted(Path(__file__).parent.glob("*.py"))
}
