"""``stablelightning predict RUN_FOLDER``: new predictions from what a run left."""

import argparse
import re
from pathlib import Path

from stablelightning.cli.output import check_writable
from stablelightning.cli.run import LightParser
from stablelightning.errors import CheckpointError, RecipeError

_TRAINING_PATH = re.compile(r"^--data\.(init_args\.)?(path|root)(?==|$)")

_CLASS_OR_MAPPING = re.compile(r"([a-z_]\w*\.)*[A-Z]\w*$|\s*\{")

_HELP = """\
usage: stablelightning predict RUN_FOLDER [--data FILE | --data.KEY=VALUE]... [--output FILE]

Predict with the best checkpoint of a run, and write one row per input.

  RUN_FOLDER        the folder that stablelightning run left
  --data FILE       predict the rows of this file, or the images of this folder; without it,
                    the test set is predicted
  --data.KEY=VALUE  override any other setting of the data
  --output FILE     a .parquet file; RUN_FOLDER/predict-<n>.parquet otherwise
  --checkpoint FILE another checkpoint than RUN_FOLDER/checkpoints/best.ckpt; given several times,
                    for runs of one recipe with different seeds, their ensemble predicts
  --weights_only=false  load a checkpoint that holds Python objects; they run code, so trust it
  --KEY=VALUE       override any other setting, such as --stable.uncertainty.samples=200, or
                    --trainer.devices=2 for two processes that write one file

stablelightning predict --config FILE predicts as LightningCLI does; see
stablelightning predict --config FILE --help."""


def main(arguments: list[str]) -> int:
    """Predict from the folder of a run; the first argument is the folder.

    Raises:
        RecipeError: the folder is not that of a run, or a setting is unknown.
        CheckpointError: there is no checkpoint in it, or it does not fit.
        OutputError: the output cannot be written.
    """
    options, rest = _options().parse_known_args(arguments)
    if options.help:
        print(_HELP)
        return 0
    folder = Path(rest[0]).expanduser()
    config = folder / "config.yaml"
    if not config.is_file():
        raise RecipeError(
            f"predict needs the folder of a run, with its config.yaml, got {rest[0]!r}; "
            "name the folder that stablelightning run printed as its results."
        )
    named = options.checkpoint or [None]
    checkpoints = [_checkpoint(folder, wanted) for wanted in named]
    output = Path(options.output).expanduser() if options.output else _free_name(folder)
    if output.suffix != ".parquet":
        raise RecipeError(f"--output must be a .parquet file, got {options.output!r}.")
    check_writable(output.parent)
    overrides = _with_data(config, options.data, rest[1:])
    _predict(config, checkpoints, output, overrides, weights_only=options.weights_only)
    return 0


def _predict(
    config: Path, checkpoints: list[Path], output: Path, overrides: list[str], *, weights_only: bool
) -> None:
    from stablelightning.callbacks.predictions import WritePredictions
    from stablelightning.cli.lightning import StableCLI, checkpoint_errors
    from stablelightning.cli.processes import end_together
    from stablelightning.cli.quiet import quiet
    from stablelightning.cli.several import predict_for_all
    from stablelightning.model.backbones import without_weights

    quiet()
    # One process unless more are asked for, and no record of the prediction as if of a run.
    arguments = [f"--config={config}", "--trainer.logger=false", "--trainer.devices=1"]
    arguments += ["--trainer.strategy=auto", "--trainer.default_root_dir=null"]
    arguments += ["--stable.predictions=null", *overrides]
    with without_weights():  # the checkpoint brings them
        cli = StableCLI(arguments, run=False)
    if len(checkpoints) > 1:
        predict_for_all(cli.trainer, checkpoints, weights_only=weights_only)
    writer = WritePredictions(output.parent, name=output.name)
    cli.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
    with checkpoint_errors(str(checkpoints[0])):
        cli.trainer.predict(
            cli.model,
            datamodule=cli.datamodule,
            return_predictions=False,
            ckpt_path=str(checkpoints[0]),
            weights_only=weights_only,
        )
    if writer.path is None:
        raise RecipeError(
            "predict needs at least one batch, and the data gave none; name other data with --data."
        )
    if cli.trainer.is_global_zero:
        print(f"Predictions: {writer.path}")
    end_together()


def _checkpoint(folder: Path, wanted: str | None) -> Path:
    """The checkpoint that was asked for, or best.ckpt, or the only one that is not the last."""
    usual = folder / "checkpoints" / "best.ckpt"
    checkpoint = Path(wanted).expanduser() if wanted else usual
    if not wanted and not usual.is_file():
        others = [p for p in usual.parent.glob("*.ckpt") if not p.stem.startswith("last")]
        checkpoint = others[0] if len(others) == 1 else usual
    if not checkpoint.is_file():
        raise CheckpointError(
            f"predict needs a checkpoint, and {checkpoint} does not exist; "
            "name one with --checkpoint."
        )
    return checkpoint


def _free_name(folder: Path) -> Path:
    number = 1
    while (folder / f"predict-{number}.parquet").exists():
        number += 1
    return folder / f"predict-{number}.parquet"


def _with_data(config: Path, data: str | None, overrides: list[str]) -> list[str]:
    """Let ``--data FILE``, or another path than in training, name what is to be predicted.

    As the ``path`` of the training data, most rows of the file would be taken for training rows,
    and only its share of test rows predicted. A data module without ``predict_path`` gets what it
    is given, and so does ``--data`` with a class or a mapping, which is LightningCLI's own.
    """
    if "predict_path:" not in config.read_text(encoding="utf-8"):
        return overrides if data is None else [f"--data={data}", *overrides]
    renamed = [_TRAINING_PATH.sub("--data.predict_path", word) for word in overrides]
    if data is None:
        return renamed
    if _CLASS_OR_MAPPING.match(data):
        return [f"--data={data}", *renamed]
    if not Path(data).expanduser().exists():
        raise RecipeError(
            f"--data must be a file or a folder that exists, got {data!r}; check the path."
        )
    return [f"--data.predict_path={data}", *renamed]


def _options() -> argparse.ArgumentParser:
    parser = LightParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--data")
    parser.add_argument("--output")
    parser.add_argument("--checkpoint", action="append")
    parser.add_argument("--weights_only", type=lambda word: word.lower() != "false", default=True)
    return parser
