"""A hook of `mkdocs build`: formulas become MathML, which browsers draw without a script."""

import html
import re
from xml.etree import ElementTree

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?:span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</(?:span|div)>([.,;:)]*)',
    re.DOTALL,
)
# A function's name stands apart from an argument without brackets.
_APPLIED = re.compile(r"(<mi>(?:log|exp|tanh|max|min)</mi>)(?=<(?:mi|mn|mfrac|msub|msup|msqrt)>)")

_MATHML = "http://www.w3.org/1998/Math/MathML"
_RELATIONS = ("=", "≤", "≥", "<", ">", "≈", "→")
_BEFORE_UNARY = (*_RELATIONS, *"([,/")
ElementTree.register_namespace("", _MATHML)


def on_page_content(content: str, **_: object) -> str:
    """Draws the formulas of a page, `$...$` and `math` blocks, as MathML."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(found: re.Match[str]) -> str:
    bracket, tex, mark = found.groups()
    is_block = bracket == "["
    formula = _formula(tex, "block" if is_block else "inline")
    if is_block:
        return f'<div class="formula">{_text(formula)}</div>{mark}'
    # A line may end after a relation, where browsers break none.
    pieces: list[list[ElementTree.Element]] = [[]]
    for part in formula[0]:
        pieces[-1].append(part)
        if part.text in _RELATIONS:
            pieces.append([])
    whole = []
    for piece in filter(None, pieces):
        formula[0][:] = piece
        whole.append(_text(formula))
    if mark:  # stays with what it follows
        whole[-1] = f'<span class="unbroken">{whole[-1]}{mark}</span>'
    return "<wbr>".join(whole)


def _formula(tex: str, display: str) -> ElementTree.Element:
    """MathML of TeX, with TeX's spaces where browsers have others."""
    mathml = convert(html.unescape(tex).strip(), display=display)
    mathml = mathml.replace("negativethinmathspace", "-0.167em")  # browsers know lengths alone
    formula = ElementTree.fromstring(_APPLIED.sub(r'\1<mspace width="0.167em" />', mathml))
    for parent in formula.iter():
        parts = list(parent)
        if parent.tag == _tag("msup") and parts[1].text == "\N{PRIME}":  # its sign is a raised one
            parent.tag = _tag("mrow")
        for before, part, after in zip([None, *parts], parts, [*parts[1:], None], strict=False):
            sign = part.text if part.tag == _tag("mo") or part.text == "~" else None
            if sign == "~":
                part.tag, part.text = _tag("mo"), "\N{TILDE OPERATOR}"
                _space(part, "0.278em", "0.278em")
            elif sign == ":":
                _space(part, "0", "0.278em")
            elif sign in ("max", "min"):
                _space(part, "0", "0" if _is(after, "([|") else "0.167em")
            elif sign in ("|", "‖", "/") or (sign in ("−", "+") and _is_unary(before)):
                _space(part, "0", "0")
    return formula


def _is_unary(before: ElementTree.Element | None) -> bool:
    return before is None or (before.tag == _tag("mo") and before.text in _BEFORE_UNARY)


def _is(part: ElementTree.Element | None, signs: str) -> bool:
    return part is not None and part.tag == _tag("mo") and part.text in tuple(signs)


def _space(operator: ElementTree.Element, before: str, after: str) -> None:
    operator.attrib.update(lspace=before, rspace=after)


def _tag(name: str) -> str:
    return f"{{{_MATHML}}}{name}"


def _text(formula: ElementTree.Element) -> str:
    return ElementTree.tostring(formula, "unicode")
