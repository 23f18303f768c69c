"""The paper's table, repeated: `python -m experiments.reproduction --help`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli import flags, frame
from experiments.cli.flags import BadInput
from experiments.cli.interrupts import Interrupts
from experiments.reproduction.options import Options
from experiments.training import compiling

if TYPE_CHECKING:
    from experiments.report.runs import Collection
    from experiments.reproduction.page import Family

PROG = "python -m experiments.reproduction"
PAGE, FIGURES, SEARCH, READING = "README.md", "figures", "search", "reading.md"
FAMILIES = {
    "mujoco": "MuJoCo, 1M steps",
    "brax": "Brax, 1M steps",
    "minatar": "MinAtar, 10M steps",
    "classic": "Classic control, 500k steps",
}
# Folder below a family's, and the sweep file of that name -> title, setting, its symbol, and a
# second setting that is on or off.
STUDIES = {"mujoco/sharpness": ("RGPO's k", "sharpness", "k", "normalize")}


def main(args: Sequence[str] | None = None) -> int:
    """Writes the page and its figures; returns the exit status."""
    return frame.run(_main, args)


def _main(args: Sequence[str], _: Interrupts) -> int:
    options = flags.read(Options, Options(), args, PROG)
    if options.collect is not None:
        return _collect(options, options.collect)
    return _write(options)


def _write(options: Options) -> int:
    with flags.report_extra("the page"):
        from experiments.reproduction import figures, page
    from experiments.record.files import write_atomically
    from experiments.record.run_folder import choose_page_folder, refusing
    from experiments.reproduction import tables

    data, there = _families("--data", options.data)
    folder = choose_page_folder(options.out, "reproduction", (PAGE,), options.overwrite)
    pictures: dict[str, bytes] = {}
    families = [_read(data, key, pictures) for key in there]
    studies = []
    for key, (title, setting, symbol, switch) in STUDIES.items():
        collection = tables.read((data / key).parent, (data / key).name)
        if collection is not None:
            name = f"{key.replace('/', '-')}.png"
            pictures[name] = figures.over_setting(collection, setting, symbol, switch)
            studies.append(page.Study(title, f"{key}.yaml", collection, f"{FIGURES}/{name}"))
    returns = None
    for family in families:
        if family.key == "mujoco" and (picture := figures.returns(family.cells)):
            returns, pictures["returns.png"] = f"{FIGURES}/returns.png", picture
    content = page.render(families, studies, returns, _read_text(data / READING))
    with refusing(folder):
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            write_atomically(folder / FIGURES / name, picture)
        write_atomically(folder / PAGE, content)
    print(f"{len(families)} families, {len(pictures)} figures -> {folder / PAGE}", flush=True)
    return 0


def _collect(options: Options, raw: str) -> int:
    """Takes runs into the tables of `data`."""
    with flags.report_extra("the page"):
        from experiments.reproduction import rows, tables

    from experiments.record.run_table import TABLE

    folder, there = _families("--collect", raw)
    whole = {*rows.ALL, *(study.partition("/")[2] for study in STUDIES)}
    for key in there:
        family = Path(options.data).expanduser() / key  # need not exist yet
        taken = tables.write(folder / key, family, whole)
        print(f"{key}: {taken} runs -> {family / TABLE}", flush=True)
    return 0


def _families(flag: str, path: str) -> tuple[Path, list[str]]:
    """A folder, and the families that it has folders of."""
    try:
        folder = Path(path).expanduser()
        there = [key for key in FAMILIES if (folder / key).is_dir()]
    except (OSError, RuntimeError) as error:
        raise BadInput(f"{flag} {path}: {error}") from None
    if not there:
        raise BadInput(f"{flag} {path}: expected a folder with {' or '.join(FAMILIES)}")
    return folder, there


def _read(data: Path, key: str, pictures: dict[str, bytes]) -> "Family":
    """A family of tasks; its figures of training go into `pictures`."""
    from experiments.report import charts
    from experiments.reproduction import figures, rows
    from experiments.reproduction.page import Beside, Family
    from experiments.reproduction.search import SEARCHES, candidates

    collection = rows.read(data / key)

    def draw(shown: "Collection", prefix: str) -> dict[str, str]:
        drawn = figures.curves(shown)
        names = {task: f"{prefix}-{charts.file_name(task)}.png" for task in drawn}
        pictures.update({names[task]: picture for task, picture in drawn.items()})
        return {task: f"{FIGURES}/{name}" for task, name in names.items()}

    beside = {}
    for name, group in rows.GROUPS.items():
        shown = rows.beside_the_table(collection, group)
        beside[name] = Beside(shown, draw(shown, f"{key}-{name}"))
    table = rows.of_the_table(collection)
    search = SEARCHES.get(key)
    found = candidates(data / key / SEARCH, search.references) if search else {}
    return Family(
        key,
        FAMILIES[key],
        collection.cells,
        table,
        beside,
        search if found else None,
        found,
        draw(table, key),
        _read_text(data / key / READING),
    )


def _read_text(file: Path) -> str:
    """Empty where there is no such file."""
    try:
        return file.read_text().strip() if file.exists() else ""
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: {getattr(error, 'strerror', None) or error}") from None


if __name__ == "__main__":
    compiling.leave(main)
