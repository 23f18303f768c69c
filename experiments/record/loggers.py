"""Where metrics go beside `metrics.jsonl`: TensorBoard, and Weights & Biases. Loads neither yet."""

import abc
import contextlib
import importlib.metadata
import io
import math
import os
import secrets
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from experiments.cli.flags import BadInput
from experiments.record.headline import Headline
from rgpo_jax.importing import install_hint

LoggerName = Literal["tensorboard", "wandb"]
DEFAULT_LOGGERS: tuple[LoggerName, ...] = ("tensorboard",)
FOLDERS = ("tensorboard", "wandb")  # in a run's folder


class Logger(abc.ABC):
    """One of these places. An implementation may ignore all but `log` and `close`."""

    def begin(self, config: Mapping[str, Any]) -> None:
        """Takes the content of `config.json`; once, and first.

        Raises:
          BadInput: the place cannot be reached.
        """
        return

    def rewind(self, steps: int) -> None:
        """What was logged after so many steps will be logged again."""
        return

    @abc.abstractmethod
    def log(
        self, steps: int, metrics: Mapping[str, Sequence[float]], speed: Mapping[str, float]
    ) -> None:
        """Takes metrics by name, one value per seed; NaN where undefined.

        Args:
          steps: so far, of one seed.
          metrics: of all seeds.
          speed: steps a second of all seeds, by the name of that rate; empty: not known.
        """

    def film(self, steps: int, path: Path) -> None:
        """Takes a GIF of the policy."""
        return

    def summarize(self, summary: Mapping[str, Any]) -> None:
        """Takes the content of `summary.json`."""
        return

    @abc.abstractmethod
    def close(self) -> None:
        """Hands over what is still on its way."""


def make(names: Sequence[LoggerName], folder: Path) -> list[Logger]:
    """Loggers of these names that write under a run's folder, where they can."""
    kinds = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
    return [kinds[name](folder / name) for name in names]


def require(names: Sequence[LoggerName]) -> None:
    """Checks that loggers of these names can be made.

    Raises:
      BadInput: a package is missing, or nobody is logged in.
    """
    if "wandb" not in names:
        return
    try:  # looking for a module would find the folder wandb/ that its runs leave behind
        importlib.metadata.distribution("wandb")
    except importlib.metadata.PackageNotFoundError:
        hint = install_hint("wandb")
        raise BadInput(f"--loggers wandb: needs the extra `wandb`: {hint}") from None
    import wandb

    online = wandb.setup().settings.mode in ("online", "shared")
    if online and not wandb.login(prompt=False):
        raise BadInput(
            "--loggers wandb: nobody is logged in: run `wandb login`, or set WANDB_API_KEY, or "
            "WANDB_MODE=offline"
        )


def _of_speed(speed: Mapping[str, float]) -> dict[str, float]:
    return {f"speed/{name}": rate for name, rate in speed.items()}


def _path(name: str) -> str:
    return f"{'evaluation' if name.startswith('eval_') else 'training'}/{name}"


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


class TensorBoard(Logger):
    """Means over seeds, settings as hyper-parameters, and films, as events."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._events: Any = None
        self._purge_from: int | None = None
        self._config: Mapping[str, Any] = {}

    def begin(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def rewind(self, steps: int) -> None:
        self._purge_from = steps + 1

    def log(
        self, steps: int, metrics: Mapping[str, Sequence[float]], speed: Mapping[str, float]
    ) -> None:
        if self._events is None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self._folder), purge_step=self._purge_from)
            self._write_settings()
        for name, rate in _of_speed(speed).items():
            self._events.add_scalar(name, rate, steps)
        for name, values in metrics.items():
            if finite := _finite(values):
                self._events.add_scalar(_path(name), sum(finite) / len(finite), steps)

    def _write_settings(self) -> None:
        """As TensorBoard's page of hyper-parameters reads them, beside the score.

        `SummaryWriter.add_hparams` writes the same into a folder of its own, as another run.
        """
        from tensorboardX.summary import hparams

        settings = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in self._config.get("settings", {}).items()
        }
        score = _path(Headline.of_run(self._config).score.metric)
        for summary in hparams(settings, {score: None}):
            self._events.file_writer.add_summary(summary)

    def film(self, steps: int, path: Path) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        content = path.read_bytes()
        width, height = struct.unpack_from("<HH", content, 6)  # of a GIF's header
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=content
        )
        summary = Summary(value=[Summary.Value(tag="policy", image=image)])
        self._events.file_writer.add_summary(summary, steps)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()


class WeightsAndBiases(Logger):
    """A run with settings, means and values per seed, and the summary; steps are W&B's steps.

    Its id stays in the folder, so that a run that goes on is the same there. It is not rewound:
    steps after the checkpoint come a second time, and W&B, whose steps only rise, may drop them.
    `WANDB_PROJECT`, `WANDB_ENTITY`, `WANDB_MODE` and the others are obeyed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._run: Any = None
        self._seeds: range = range(0)

    def begin(self, config: Mapping[str, Any]) -> None:
        import wandb

        settings = config["settings"]
        self._seeds = range(settings["seed"], settings["seed"] + settings["num_seeds"])
        self._folder.mkdir(exist_ok=True)
        file = self._folder / "run_id"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # "silent" does not silence warnings
                self._run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", "rgpo_jax"),
                    name=os.environ.get("WANDB_NAME", self._folder.parent.name),
                    id=file.read_text(),
                    resume="allow",
                    reinit="create_new",  # several runs may be trained side by side
                    settings=wandb.Settings(
                        silent=True, console="off", root_dir=str(self._folder.parent)
                    ),
                )
                self._run.config.update(dict(config), allow_val_change=True)
        except wandb.Error as error:
            raise BadInput(f"--loggers wandb: {error}") from None

    def log(
        self, steps: int, metrics: Mapping[str, Sequence[float]], speed: Mapping[str, float]
    ) -> None:
        row = _of_speed(speed)
        for name, values in metrics.items():
            if finite := _finite(values):
                row[_path(name)] = sum(finite) / len(finite)
            for seed, value in zip(self._seeds, values, strict=True):
                if math.isfinite(value):
                    row[f"{_path(name)}/seed_{seed}"] = value
        self._run.log(row, step=steps)

    def film(self, steps: int, path: Path) -> None:
        import wandb

        self._run.log({"policy": wandb.Video(str(path), format="gif")}, step=steps)

    def summarize(self, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
