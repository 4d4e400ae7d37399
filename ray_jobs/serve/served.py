"""Which models are served: their checkpoints, prompts, and names.

In: a `ServeConfig`. Out: the `Served` models. Nothing is loaded here but the checkpoints, so that a mistake is reported
before anything starts.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from clipautt.adaptation.personalization import checkpoint_of_personalization
from clipautt.files import newest
from clipautt.model.checkpoint import Checkpoint, load_checkpoint
from ray_jobs.platform.predictors import chosen_checkpoint
from ray_jobs.serve.model.messages import Served
from ray_jobs.serve.settings import ALLOWED_NAME, NAME, ServeConfig


def chosen_models(config: ServeConfig) -> dict[str, Path]:
    """Name → checkpoint folder, absolute. A single model without a name is called after what it recognizes.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: a name is not allowed.
    """
    if config.models is None:
        folder = chosen_checkpoint(config.checkpoint).absolute()
        return {name_of(load_checkpoint(folder)): folder}
    for name in config.models:
        if not NAME.fullmatch(name):
            raise ValueError(f"models: {name!r} is no name of a model; {ALLOWED_NAME}")
    return {name: chosen_checkpoint(folder).absolute() for name, folder in config.models.items()}


def name_of(checkpoint: Checkpoint) -> str:
    """The name of a model: its class that is not neutral, or `model` where there are several or it is no name."""
    others = checkpoint.spec.classes[1:]
    return others[0].lower() if len(others) == 1 and NAME.fullmatch(others[0]) else "model"


def served_models(config: ServeConfig) -> tuple[Served, ...]:
    """The models of the settings.

    Raises:
        FileNotFoundError: a checkpoint or the folder of prompts is missing.
        ValueError: a checkpoint is damaged, or a name is not allowed.
    """
    if config.prompts is not None and not config.prompts.is_dir():
        raise FileNotFoundError(
            f"prompts={config.prompts}: no such folder; `clipautt adapt` or `clipautt personalize` makes one"
        )
    found = {name: load_checkpoint(folder) for name, folder in chosen_models(config).items()}
    prompts = {name: _prompts_of(one, config, alone=len(found) == 1) for name, one in found.items()}
    specs: list[object] = []
    served = []
    for name, checkpoint in found.items():
        frames = checkpoint.spec.features.frames
        facts = frames.facts
        if facts not in specs:
            specs.append(facts)
        own = prompts[name]
        folder = None if own is None else str(own.absolute())
        served.append(Served(name, str(checkpoint.folder), folder, frames, f"frames {specs.index(facts)}"))
    return tuple(served)


def _prompts_of(checkpoint: Checkpoint, config: ServeConfig, *, alone: bool) -> Path | None:
    """The folder of prompts of a model: the one that is named, if they are its own or it is the only model; else the
    newest of its own."""
    if config.prompts is not None and (alone or _belongs(config.prompts, checkpoint.fingerprint)):
        return config.prompts
    return None if config.prompts is not None else newest_prompts(checkpoint.fingerprint, config.runs)


def newest_prompts(fingerprint: str, runs: str | Path) -> Path | None:
    """The newest folder of prompts below `runs` whose newest file belongs to a checkpoint; None if there is none."""
    folders = {path.parent for path in Path(runs).glob("**/prompts/*.safetensors")}
    mine = [folder for folder in folders if _belongs(folder, fingerprint)]
    return max(mine, key=lambda folder: folder.stat().st_mtime, default=None)


def _belongs(folder: Path, fingerprint: str) -> bool:
    file = newest(folder, "*.safetensors")
    try:
        return file is not None and checkpoint_of_personalization(file) == fingerprint
    except (ValueError, SafetensorError):
        return False


def missing_cores(config: ServeConfig, cores: int) -> str | None:
    """Why the settings need more cores than there are; None if they do not."""
    needed = config.decoders + config.encoders
    if needed <= max(2, cores):
        return None
    return (
        f"decoders={config.decoders} and encoders={config.encoders} need {needed} cores, and the cluster has {cores}; "
        "give fewer"
    )
