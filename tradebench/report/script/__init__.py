"""The page's own script: ECMAScript modules, joined into the one that stands in a page.

A page has no other file to import from, so the joined text has them in the order of `MODULES`, each
after all that it imports, without `import` and `export`: a name means the same in all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

MODULES = (
    "numbers",
    "fitting",
    "telling",
    "drawings",
    "elements",
    "embedding",
    "rows",
    "card",
    "controls",
    "sorting",
    "explorer",
    "page",
)
HERE = Path(__file__).parent
_BETWEEN = re.compile(r"^import [^;]*;\n+|^export ", re.MULTILINE)


def javascript() -> str:
    """Return all of them as one module, which runs after that of Vega."""
    texts = ((HERE / f"{name}.js").read_text(encoding="utf-8") for name in MODULES)
    return "\n".join(_BETWEEN.sub("", text) for text in texts)
