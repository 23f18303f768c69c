"""What Griffe, which reads docstrings without running code, is told of this suite's."""

import re
import sys
import textwrap
from typing import Any

import griffe

# Gates are made of their formulas by a call: their docstrings and signatures are known at run time.
_MADE = ("gates",)
_MATH = re.compile(r"^\.\. math::(.*(?:\n +\S.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Adds the functions that are made by a call, and turns `.. math::` into blocks of TeX."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """When a package was read as a whole."""
        if pkg.name == "rgpo_jax":
            for name in _MADE:
                _add_made(pkg[name])
        _walk(pkg)


def _add_made(module: griffe.Module) -> None:
    made = griffe.inspect(
        module.path,
        filepath=module.filepath,
        import_paths=sys.path,
        docstring_parser=griffe.Parser.google,
        docstring_options={"warn_missing_types": False},  # their ranges stand in the text
    )
    for name, member in module.members.items():
        found = made.members.get(name)
        if isinstance(member, griffe.Attribute) and isinstance(found, griffe.Function):
            found.lineno = member.lineno  # members are shown in the order of the source
            module.set_member(name, found)


def _walk(thing: griffe.Object) -> None:
    if thing.docstring:
        thing.docstring.value = _MATH.sub(_as_block, thing.docstring.value)
    for member in thing.members.values():
        if not member.is_alias:
            _walk(member)


def _as_block(found: re.Match[str]) -> str:
    tex = textwrap.dedent(found[1].strip())
    return f"```math\n{tex}\n```\n"
