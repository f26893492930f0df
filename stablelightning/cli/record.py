"""The resolved recipe of a run, as a file without secrets."""

import os
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from stablelightning.files import written_whole
from stablelightning.report.redact import redact_secrets


def resolved_recipe(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """Every setting with its value, defaults included, as plain types; secrets are redacted."""
    # By position: nulls are kept, by an argument that jsonargparse has renamed.
    dumped = parser.dump(config, "yaml", False)
    recipe: dict[str, Any] = redact_secrets(yaml.safe_load(dumped))
    return recipe


def write_recipe(folder: str | os.PathLike[str], recipe: dict[str, Any]) -> Path:
    """Write ``config.yaml`` into ``folder``, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(folder) / "config.yaml"
    with written_whole(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


class SaveRecipe(SaveConfigCallback):
    """LightningCLI's ``config.yaml`` in the log folder, without secrets; a new one replaces it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it once, on rank 0."""
        if self.already_saved:
            return
        folder = trainer.log_dir  # a broadcast: every rank asks
        if trainer.is_global_zero and folder is not None:
            write_recipe(folder, resolved_recipe(self.parser, self.config))
        self.already_saved = True
