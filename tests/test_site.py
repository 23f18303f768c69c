"""The documentation site builds without a complaint, links lead somewhere, the API is whole."""

import ast
import contextlib
import html.parser
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import griffe
import markdown_it
import matplotlib.pyplot as plt
import nbclient
import nbformat
import pytest
import yaml

import rgpo_jax

ROOT = Path(__file__).parents[1]
PACKAGES = ("rgpo_jax", "agents", "envs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # what the theme says of its successor
    built = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


class Parts(html.parser.HTMLParser):
    """What a page links to and what it loads, which anchors it has, and how many of each tag."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.anchors, self.counts = set(), set(), set(), {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        links = {attrs[name] for name in ("href", "src") if attrs.get(name)}
        self.links |= links
        if tag != "a":
            self.loaded |= links


@pytest.fixture(scope="module")
def pages(site):
    """Path -> parts, of every page but the one for addresses that do not exist."""
    found = {path: Parts(path.read_text()) for path in site.rglob("*.html")}
    return {path: parts for path, parts in found.items() if path.name != "404.html"}


def test_every_link_leads_to_a_page_and_to_an_anchor_on_it(site, pages):
    broken, followed = [], 0
    for page, parts in pages.items():
        for link in parts.links:
            split = urlsplit(link)
            if split.scheme or split.netloc:
                continue
            target = (page.parent / unquote(split.path)).resolve() if split.path else page
            anchor = unquote(split.fragment)
            followed += 1
            if not target.is_file() or (anchor and anchor not in pages[target].anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert not broken
    assert followed > 2000


def test_a_page_needs_no_other_site(site, pages):
    for page, parts in pages.items():
        loaded = [link for link in parts.loaded if urlsplit(link).netloc]
        assert not loaded, page.relative_to(site)


MARKDOWN = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")),
        *(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "api"),
        *(ROOT / "results").rglob("README.md"),
    )
)


def page_of(name):
    folder, _, file = name.rpartition("/")
    return f"{folder}/index.html" if file == "README.md" else name.replace(".md", ".html")


@pytest.mark.parametrize("name", MARKDOWN)
def test_a_page_has_the_parts_that_it_has_on_github(site, name):
    text = (site / page_of(name).lstrip("/")).read_text()
    article = re.search(r"<article.*?</article>", text, re.DOTALL)[0]
    source = re.sub(r"^```math$.*?^```$", "", (ROOT / name).read_text(), flags=re.M | re.S)
    github = markdown_it.MarkdownIt("commonmark").enable("table").render(source)
    ours, theirs = Parts(article).counts, Parts(github).counts
    for tag in ("h1", "h2", "h3", "li", "ol", "ul", "table", "tr", "td", "pre", "img", "strong"):
        assert ours.get(tag, 0) == theirs.get(tag, 0), tag


def test_formulas_are_drawn_without_a_script(site):
    theory = (site / "docs" / "theory.html").read_text()
    source = (ROOT / "docs" / "theory.md").read_text()
    # In pieces, between which a line may end.
    inline = re.sub(r"^```.*?^```$", "", source, flags=re.M | re.S).count("$") // 2
    assert theory.count('display="block"') == source.count("```math") > 0
    assert theory.count('display="inline"') >= inline > 0
    assert 'display="block"' in (site / "docs" / "api" / "gates.html").read_text()
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "arithmatex" not in text and ".. math::" not in text and "<merror" not in text, page


@pytest.mark.skipif(browser.find() is None, reason="no Chromium")
def test_on_a_phone_tables_and_code_scroll_and_no_page_does(pages, tmp_path):
    chromium = browser.Browser(tmp_path)
    try:
        for page in pages:
            chromium.open(page, width=390, height=844, touch=True)
            assert chromium.evaluate("document.documentElement.scrollWidth") <= 390, page
            assert not [url for url in chromium.requests if not url.startswith("file:")], page
            assert not chromium.complaints, page
    finally:
        chromium.close()


def shown(site):
    pages = (site / "docs" / "api").glob("*.html")
    return {name for page in pages for name in Parts(page.read_text()).anchors}


def test_the_api_has_every_public_module_and_what_is_in_it(site):
    names = shown(site)
    assert {f"rgpo_jax.{name}" for name in rgpo_jax._SUBMODULES} <= names
    wanted = (
        "agents.load",
        "envs.make",
        "envs.adapt",
        "rgpo_jax.gates.rgpo",
        "rgpo_jax.policy.load",
    )
    assert set(wanted) <= names
    assert {"rgpo_jax.config.Config.learning_rate", "agents.language.dpo"} <= names
    assert not [name for name in names if re.search(r"\._[a-z]", name)]


@pytest.fixture(scope="module")
def packages():
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    return [loader.load(name) for name in PACKAGES]


def is_public(name, member):
    return not (member.is_alias or name.startswith("_"))


def documented_elsewhere(packages):
    """(class, method) -> whether a base, or a protocol that the class fulfils, describes it."""
    protocols = [
        {name: method for name, method in members.items() if method.is_function}
        for package in packages
        for members in protocols_in(package)
    ]

    def is_documented(owner, name):
        if any(name in base.members and base.members[name].has_docstring for base in owner.mro()):
            return True
        return any(
            name in methods
            and methods[name].has_docstring
            and set(methods) <= set(owner.all_members)
            for methods in protocols
        )

    return is_documented


def protocols_in(thing):
    for name, member in thing.members.items():
        if not is_public(name, member):
            continue
        if member.is_module:
            yield from protocols_in(member)
        elif member.is_class and any("Protocol" in str(base) for base in member.bases):
            yield member.members


def test_every_public_name_has_a_docstring(packages):
    is_documented = documented_elsewhere(packages)

    def undocumented(thing):
        if not thing.has_docstring:
            yield thing.path
        for name, member in thing.members.items():
            if not is_public(name, member):
                continue
            if member.is_module or member.is_class:
                yield from undocumented(member)
            elif member.is_function and not (
                member.has_docstring or (thing.is_class and is_documented(thing, name))
            ):
                yield member.path

    missing = [path for package in packages for path in undocumented(package)]
    assert not missing, "\n".join(missing)


# Instead of the numbers that the notebook's text speaks of.
SHORT = {
    "total_steps=40_000": "total_steps=9_216",
    "num_episodes=16": "num_episodes=4",
    "[1.0, 4.0, 16.0, 64.0]": "[1.0, 4.0]",
    "jax.random.key(0), 8)": "jax.random.key(0), 2)",
    # Tests compile without optimisation.
    '{"xla_backend_optimization_level": 1}': "None",
}


def run_cell(source, names):
    """Runs a cell as a notebook does; what it puts out, by kinds, and its last expression."""
    *statements, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        body = ast.Module(statements if shown else [*statements, last], [])
        exec(compile(body, "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if shown else None
    kinds = ["stream"] if printed.getvalue() else []
    kinds += ["execute_result"] if value is not None else []
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
        plt.close(number)
        kinds.append("display_data")
    return kinds, value


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """It puts out what is kept in it: prints, figures and values."""
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")  # which closes all figures
    notebook = nbformat.read(ROOT / "docs" / "tutorials" / "cartpole.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    names, unseen, values = {}, dict(SHORT), []
    for cell in cells:
        source = cell.source
        for whole in [whole for whole in unseen if whole in source]:
            source = source.replace(whole, unseen.pop(whole))
        kinds, value = run_cell(source, names)
        # What is printed may be kept in several pieces.
        kept = [output.output_type for output in cell.outputs]
        assert kinds == list(dict.fromkeys(kept))
        values.append(value)
    assert not unseen
    # The return of the best policy, of which random ones have 20 or so.
    assert values[-1] > 150


@pytest.mark.slow
def test_a_kernel_runs_the_notebook_as_it_stands(tmp_path, monkeypatch):
    # EnvPool sets it where its Jumanji is imported, and the kernel then shows no figure.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(ROOT / "docs" / "tutorials" / "cartpole.ipynb", as_version=4)
    kept = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]

    def kinds(cell):
        found = []
        for kind, several in itertools.groupby(output.output_type for output in cell):
            # What is printed may come in one piece or in several.
            found += [kind] if kind == "stream" else list(several)
        return found

    assert list(map(kinds, outputs)) == list(map(kinds, kept))
    assert float(outputs[-1][0].data["text/plain"]) > 400  # the return of the best policy


def test_version_changelog_and_citation_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\d\S*) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == rgpo_jax.__version__ == citation["version"]
    assert newest[2] == str(citation["date-released"])
