"""Writes the table of gates in a page anew: `python -m agents README.md`."""

import dataclasses
import re
import sys
from pathlib import Path

from rgpo_jax.gate_table import GATES


def line(name: str) -> str:
    """A gate's line in the README: name, w(r), flags, sources."""
    row = GATES[name]
    flags = " ".join(
        "--" + field.name.replace("_", "-") for field in dataclasses.fields(row.settings)
    )
    sources = ", ".join(
        f"[{source}](https://arxiv.org/abs/{source})" if source[0].isdigit() else source
        for source in row.sources
    )
    cells = (f"`{name}`", row.weight, flags and f"`{flags}`", sources)
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def rewritten(page: str) -> str:
    """The page with the gates' lines anew: those from under the table's head on to A2C's."""
    table = re.compile(r"(?<=source \|\n\|---\|---\|---\|---\|\n).*?(?=^\| `a2c`)", re.M | re.S)
    return table.sub(lambda _: "".join(f"{line(name)}\n" for name in GATES), page)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(rewritten(path.read_text()))
