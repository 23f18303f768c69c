"""One self-contained HTML page: claims first, then a section per study."""

import datetime
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.comparing import style
from experiments.record.provenance import short_commit
from experiments.theory import drawing
from experiments.theory.study import Study, say

SOURCES = {
    "paper": "the paper's abstract",
    "summary": "a secondary summary",
    "ours": "ours",
}
VERDICTS = {True: "holds", False: "does not hold", None: "cannot be told"}


def render(
    studies: Mapping[str, Study], where: Mapping[str, Any], options: Mapping[str, Any]
) -> bytes:
    """The page.

    Args:
      studies: key -> study, in the order in which they are shown.
      where: of `results.provenance`.
      options: of the call, to be repeated.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = environment.get_template("page.html").render(
        studies=studies,
        claims=[(key, claim) for key, study in studies.items() for claim in study.claims],
        sources=SOURCES,
        verdicts=VERDICTS,
        say=say,
        is_number=lambda value: isinstance(value, int | float) and not isinstance(value, bool),
        svg=lambda figure: Markup(drawing.svg(figure)),
        facts=[
            where["device"],
            where["machine"],
            f"jax {where['versions']['jax']}",
            f"Python {where['versions']['python']}",
            *([f"commit {commit}"] if (commit := short_commit(where["git_commit"])) else []),
        ],
        options=", ".join(f"{name} {value}" for name, value in options.items()),
        css=Markup(style.css()),
        made=f"Made {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by python -m "
        f"experiments.theory; SciPy {importlib.metadata.version('scipy')}.",
    )
    return content.encode()
