"""The command line.

Exit status: 0 on success, 1 if cells failed, 2 after a user's mistake, which one line explains. A fault in howsure or
in a plugin prints one line and exits with 1; with HOWSURE_DEBUG=1 it prints a traceback.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .errors import FAULTS, UserError, described, one_line, unknown, why
from .pages import keep_freed_memory
from .plugins import DATASETS, METHODS, REGISTRIES
from .suite import PROTOCOLS, load_suite, short, suite_names


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    if "_HOWSURE_COMPLETE" in os.environ:  # set by a shell that asks for completions
        howsure.main(prog_name="howsure")
    try:
        with howsure.make_context("howsure", list(sys.argv[1:] if arguments is None else arguments)) as context:
            howsure.invoke(context)  # click's own main treats a closed pipe as a failure
        sys.exit(0)
    except UserError as error:
        _stop(str(error), 2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _stop(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        _stop("interrupted; what is finished is kept, run the same command again to continue", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if os.environ.get("HOWSURE_DEBUG"):
            raise
        if isinstance(error, OSError):
            _stop(f"{error.filename}: {why(error)}" if error.filename else why(error), 2)
        _stop(f"{described(error)}; a fault in howsure or in a plugin: set HOWSURE_DEBUG=1 for the traceback", 1)


def _stop(message: str, status: int) -> None:
    _say(message)
    sys.exit(status)


def _say(message: object) -> None:
    click.echo(f"howsure: {one_line(message)}", err=True)


def _load_plugins(_context: click.Context, _option: click.Parameter, files: tuple[str, ...]) -> tuple[str, ...]:
    for file in files:
        _load_plugin(file)
    return files


def _load_plugin(file: str) -> list[str]:
    """Register the plugins in a file, of whatever kind; returns their names."""
    from .registry import import_file

    found = [name for registry in REGISTRIES.values() for name in registry.add_module(import_file(file))]
    if not found:
        raise UserError(f"{file}: contains no plugin; derive a class from howsure.Method, Dataset or Backbone")
    return found


plugin = click.option(
    "--plugin",
    multiple=True,
    metavar="FILE",
    callback=_load_plugins,
    is_eager=True,
    help="A Python file with plugins; may be repeated.",
)  # fmt: skip
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="howsure")
def howsure() -> None:
    """How sure is your network? Compare uncertainty scores for trained image classifiers."""
    keep_freed_memory()


@howsure.command()
@click.argument("suite")
@click.option("--methods", metavar="A,B", help="Only these methods (names or globs).")
@click.option("--backbones", metavar="X,Y", help="Only these backbones of the suite.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.  [default: results/SUITE]"
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="This seed instead of the suite's.")
@click.option("--fresh", is_flag=True, help="Recompute cells that are already in the folder.")
@device_option
@plugin
def run(
    suite: str,
    methods: str | None,
    backbones: str | None,
    out: Path | None,
    seed: int | None,
    fresh: bool,
    device: str,
    plugin: Any,
) -> None:
    """Run a suite: each of its methods on every shift and backbone.

    SUITE is a name shown by `howsure list suites`, or a TOML file.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent when a batch job's time is up: stop as on Ctrl-C
    from .harness import Run
    from .plots import write_plots
    from .record import failures, skips
    from .results import RunFolder
    from .tables import write_tables

    chosen = load_suite(suite)
    if methods is not None:
        chosen = chosen.model_copy(update={"methods": _names(methods, "--methods")})
    if backbones is not None:
        chosen = chosen.model_copy(update={"backbone": _pick(chosen.backbone, _names(backbones, "--backbones"))})
    if seed is not None:
        chosen = chosen.model_copy(update={"seeds": (seed,)})
    folder = RunFolder(out or Path("results") / chosen.name)
    job = Run(chosen, chosen.chosen_methods(), folder, pick_device(device), fresh, quiet=not sys.stderr.isatty())
    results = job()
    failed = list(failures(job.record))
    write_tables(folder.folder)
    write_plots(folder.folder)
    if len(results):
        _summary(results, folder.folder)
    for line in skips(job.record):
        _say(f"skipped: {line}")
    for line in failed:
        _say(f"failed: {line}")
    sys.exit(1 if failed else 0)


def _summary(results: Any, folder: Path) -> None:
    from .tables import leaderboard

    for protocol in PROTOCOLS:
        if (results["protocol"] == protocol).any():
            click.echo(f"\nMean AUROC, protocol {protocol}\n")
            click.echo(leaderboard(results, protocol).to_markdown(index=False, floatfmt=".3f"))
    click.echo(f"\n{folder}: results.csv, timing.csv, run.json, scores/, tables/, plots/")


def _names(text: str, option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UserError(f"{option} names nothing; give names separated by commas")
    return names


def _pick(specs: Sequence[Any], names: Sequence[str]) -> tuple[Any, ...]:
    by_name = {spec.name: spec for spec in specs}
    for name in names:
        if name not in by_name:
            raise unknown("backbone of this suite", name, by_name)
    return tuple(by_name[name] for name in names)


def pick_device(name: str) -> Any:
    """A torch device by name; `auto` is the GPU if there is one. Raises UserError if the device is not available."""
    import torch

    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"no device '{name}'; torch finds {torch.cuda.device_count()} GPUs, counted from cuda:0")
    return device


@howsure.command("list")
@click.argument("kind", type=click.Choice(["methods", "datasets", "backbones", "suites"]))
@plugin
def list_(kind: str, plugin: Any) -> None:
    """List methods, data sets, backbones or suites, one per line."""
    if kind == "suites":
        width = max(map(len, suite_names())) + 2
        for name in suite_names():
            suite = load_suite(name)
            shifts = [s.name for s in suite.shift]
            made = len(suite.corruptions.types) if suite.corruptions else 0
            shifts += [f"{made} corruption{'s' * (made != 1)}"] if made else []
            click.echo(f"{name:<{width}}{short(suite.id.test)} against {', '.join(shifts)}")
        return
    registry = REGISTRIES[kind]
    width = max((len(name) for name in registry), default=0) + 2
    broken = [str(one) for one in registry.broken.values()]
    for name in registry:
        try:
            line = _describe(kind, registry[name])
        except FAULTS as error:
            broken.append(f"{kind[:-1]} '{name}': {described(error)}")
            continue
        click.echo(f"{name:<{width}}{line}")
    for problem in broken:
        _say(f"broken plugin: {problem}")
    sys.exit(1 if broken else 0)


def _describe(kind: str, cls: Any) -> str:
    summary = (cls.__doc__ or "").strip().split("\n")[0]
    if kind == "methods":
        needs = ", ".join(dict.fromkeys(type(rep).__name__ for rep in cls().needs))
        return f"{summary}  [needs {needs}; sees {cls.supervision}]"
    if kind == "datasets":
        return f"{summary}  [{cls.source}; {', '.join(cls.splits)}]"
    size = "x".join(map(str, (cls.input.channels, *cls.input.size)))
    return f"{summary}  [{size}; {'trained on the spot' if cls.recipe else 'needs a checkpoint'}]"


@howsure.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def table(folder: Path) -> None:
    """Redraw the tables of a run from the results in its FOLDER."""
    from .tables import write_tables

    for path in write_tables(folder):
        click.echo(path)


@howsure.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def plot(folder: Path) -> None:
    """Redraw the plots of a run from the results in its FOLDER."""
    from .plots import write_plots

    for path in write_plots(folder):
        click.echo(path)


@howsure.command()
@click.argument("names", nargs=-1)
@plugin
def check(names: tuple[str, ...], plugin: tuple[str, ...]) -> None:
    """Run the contract tests of methods.

    Checks the methods NAMES; without any, those in the plugin files; without either, all methods.
    """
    from .check import check_method

    if plugin and not names:
        names = tuple(name for file in plugin for name in _load_plugin(file) if name in METHODS)
        if not names:
            raise UserError(f"{', '.join(plugin)}: contains no method to check; derive a class from howsure.Method")
    failed = 0
    for name in names or tuple(METHODS):
        for contract, problem in check_method(name, METHODS[name]):
            failed += problem is not None
            if problem or names:
                click.echo(f"{name:<26}{contract:<50}{'FAILED: ' + problem if problem else 'ok'}")
    for broken in METHODS.broken.values():
        click.echo(f"broken plugin: {one_line(broken)}")
    failed += len(METHODS.broken)
    count = len(names or METHODS)
    click.echo(f"{count} method{'s' * (count != 1)} checked, {failed} problem{'s' * (failed != 1)}")
    sys.exit(1 if failed else 0)


@howsure.group()
def new() -> None:
    """Create a plugin to start from."""


@new.command("method")
@click.argument("name")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("."),
    help="Folder for the two files.  [default: the current folder]",
)
def new_method(name: str, into: Path) -> None:
    """Write NAME.py, a working method to edit, and its test."""
    from .scaffold import write_method

    if not (into / f"{name}.py").exists() and name.isidentifier() and importlib.util.find_spec(name):
        raise UserError(f"'{name}' is a Python module, which the new file would hide; choose another name")
    for path in write_method(name, into):
        click.echo(path)


@howsure.group()
def data() -> None:
    """Show where data sets are kept and which are missing, and download them."""


@data.command()
@click.argument("names", nargs=-1)
def status(names: tuple[str, ...]) -> None:
    """Say which data sets are ready, and how to get the others.

    Reports on the data sets NAMES; without any, on all.
    """
    from .data import data_root

    click.echo(f"data root: {data_root()} (set HOWSURE_DATA to change it)")
    width = max(len(name) for name in DATASETS) + 2
    for name in names or tuple(DATASETS):
        dataset = DATASETS[name]()
        try:
            missing = dataset.missing()
        except OSError as error:
            missing = f"{error.filename}: {why(error)}"
        click.echo(f"{name:<{width}}{'missing: ' + missing.removeprefix(f'{name}: ') if missing else 'ready'}")


@data.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Download the data set NAME into the data root."""
    DATASETS[name]().fetch()
    click.echo(f"{name}: ready")


@howsure.command()
@click.option(
    "--backbone", required=True, help="A registered backbone, timm/NAME, torchvision/NAME or FILE.py:FUNCTION."
)
@click.option("--method", required=True, help="A method that needs no outliers.")
@click.option(
    "--train",
    required=True,
    metavar="DATA",
    help="The network's training images: a data set, imagefolder:PATH, npz:PATH or imglist:PATH.",
)
@click.option("--checkpoint", help="The network's weights: a state dict or a .safetensors file.")
@click.option("--mean", metavar="R,G,B", help="Mean of pixel values in [0, 1], if the network does not say.")
@click.option("--std", metavar="R,G,B", help="Their standard deviation, if the network does not say.")
@click.option("--size", metavar="H,W", help="Input height and width in pixels, if the network does not say.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="CSV file.  [default: standard output]")
@click.argument("images", type=click.Path(file_okay=False, path_type=Path))
@device_option
@plugin
def score(
    backbone: str,
    method: str,
    train: str,
    checkpoint: str | None,
    mean: str | None,
    std: str | None,
    size: str | None,
    out: Path | None,
    images: Path,
    device: str,
    plugin: Any,
) -> None:
    """Score the images in a folder, most uncertain first.

    Writes a CSV with one row for each image in or below the folder IMAGES: its predicted class, its score (higher means
    more uncertain), and the percentage of training images that score lower, among a random fifth of them that the
    method is not fitted on.
    """
    from .answer import score_folder

    if out is not None and not out.parent.is_dir():
        raise UserError(f"{out}: there is no folder {out.parent}; create it first")
    if out is not None and not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"{out}: cannot write there (no permission); name another file with --out")
    inputs = {"mean": _numbers(mean, "--mean"), "std": _numbers(std, "--std"), "size": _numbers(size, "--size", int)}
    try:
        table = score_folder(backbone, method, train, images, checkpoint, pick_device(device), inputs)
    except SystemExit as error:
        raise UserError(described(error)) from error
    if out is None:
        click.echo(table.to_csv(index=False).encode(errors="surrogateescape"), nl=False)
    else:
        table.to_csv(out, index=False, errors="surrogateescape")
        click.echo(f"{out}: {len(table)} images")


def _numbers(text: str | None, option: str, kind: type = float) -> list[Any] | None:
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} {text}: give numbers separated by commas") from error
