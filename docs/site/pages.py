"""A hook of `mkdocs build`: the pages of the repository, and the files that they link to.

A page has the path that it has in the repository, so that a relative link holds on both. A file
that a page links to comes along: code as a page that shows it, others as they are.
"""

import re
from pathlib import Path, PurePosixPath

import nbconvert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**/*.md",
    "docs/tutorials/*.ipynb",
    "results/**/README.md",
)
_CODE = {".py": "python", ".yaml": "yaml", ".txt": "text"}
_LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)")  # with no ":", so to no other site

# A block of code, which stays as it is; or two spaces before a nested item, which needs four.
_BLOCK_OR_NESTED = re.compile(r"(?P<block>^```.*?^```$)|^  (?=- )", re.MULTILINE | re.DOTALL)


class Shown(File):
    """A file that is no Markdown in the repository, and a page of the site."""

    def is_documentation_page(self) -> bool:
        """MkDocs goes by the file's name otherwise."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, and what they link to."""
    root = Path(config.config_file_path).parent.resolve()
    names = [p.relative_to(root).as_posix() for pattern in PAGES for p in root.glob(pattern)]
    while names:
        name = names.pop()
        if files.get_file_from_path(name) or not (root / name).is_file():
            continue  # strict MkDocs complains of a link to nothing
        page = _file(root, name, files, config)
        files.append(page)
        if name.endswith((".md", ".ipynb")):
            folder = PurePosixPath(name).parent
            for link in _LINK.findall(page.content_string):
                target = (root / folder / link).resolve()
                if target.is_relative_to(root):
                    names.append(target.relative_to(root).as_posix())
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Says what GitHub knows by itself: that Markdown goes on within HTML, and what is nested."""
    markdown = markdown.replace("<details>", '<details markdown="1">')
    return _BLOCK_OR_NESTED.sub(lambda found: found["block"] or "    ", markdown)


def _file(root: Path, name: str, files: Files, config: MkDocsConfig) -> File:
    path = root / name
    if path.suffix == ".ipynb":
        page = Shown.generated(config, name, content=_notebook(path, files, config))
    elif path.suffix in _CODE:
        content = f"# {name}\n\n````{_CODE[path.suffix]}\n{path.read_text()}\n````\n"
        page = Shown.generated(config, name, content=content)
    else:
        return File.generated(config, name, abs_src_path=str(path))
    page.dest_uri = f"{name.removesuffix('.ipynb')}.html"
    return page


def _notebook(path: Path, files: Files, config: MkDocsConfig) -> str:
    """A notebook as Markdown; its pictures join the files."""
    text, resources = nbconvert.MarkdownExporter().from_filename(
        str(path), {"unique_key": path.stem}
    )
    folder = path.parent.relative_to(Path(config.config_file_path).parent.resolve())
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, (folder / name).as_posix(), content=picture))
    return text
