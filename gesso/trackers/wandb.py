"""Weights & Biases, where a recipe names a project there: what TensorBoard gets, on their site or in files for later.

Facts: https://docs.wandb.ai/ref/python. With WANDB_MODE=offline nothing leaves this machine;
`wandb sync` sends it later.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from gesso.errors import NetworkError, RecipeError, StorageError
from gesso.events import Event, Finished, Paused, Sample, Sampled, Stepped, Validated
from gesso.storage import write_bytes
from gesso.trackers.tensorboard import stepped, validated

log = logging.getLogger(__name__)

FOLDER = "wandb"
"""What W&B keeps of a run, in the run folder; its file `id` is the run's identity there."""
_START, _END = 30.0, 120.0
"""Seconds that the beginning may wait for the network, and the end for what has not been sent yet."""


def check(project: str) -> None:
    """RecipeError where runs cannot be told to W&B: no library, a name that is none, no login. Nothing is sent."""
    if bad := sorted(set(project) & set("/\\#?%:")):
        raise RecipeError(
            f'track.wandb = "{project}" is no name of a project: it has {" ".join(bad)}',
            todo="write the project's name alone; WANDB_ENTITY names whose it is",
        )
    library = _library()
    settings = library.setup(_quiet(library)).settings
    if settings.mode in ("offline", "disabled", "dryrun") or settings.api_key or settings.identity_token_file:
        return
    if not _in_netrc(settings.base_url):
        raise RecipeError(
            f'track.wandb = "{project}" needs a login to Weights & Biases, and there is none',
            todo="run `wandb login` once or set WANDB_API_KEY; or set WANDB_MODE=offline; or leave track.wandb out",
        )


class Wandb:
    """One run of `project` there, named after the run folder; a run that goes on goes on there too.

    Metrics have TensorBoard's names, over `step`; steps that a resumed run repeats are there twice. Raises RecipeError
    as `check` does, NetworkError where the host cannot be reached; later failures end the telling with one warning.
    """

    def __init__(self, project: str, out: Path, config: Mapping[str, Any]) -> None:
        check(project)
        library = _library()
        self._library, self._out, self._code = library, out, 1
        settings = _quiet(library)
        offline = library.setup().settings.mode in ("offline", "dryrun")
        try:
            self._run: Any = library.init(
                project=project,
                name=out.resolve().name,
                id=_identity(out),
                resume=None if offline else "allow",  # offline it has no effect, and says so
                dir=str(out),
                config=dict(config),
                allow_val_change=True,
                settings=settings,
            )
            self._run.define_metric("step", hidden=True)
            self._run.define_metric("*", step_metric="step")
        except OSError as error:
            raise StorageError(f"Weights & Biases cannot be written: {error}", where=str(out / FOLDER)) from error
        except library.errors.Error as error:
            raise NetworkError(
                f"Weights & Biases does not take the run: {_first_line(error)}",
                todo="check the connection and the login; or set WANDB_MODE=offline; or leave track.wandb out",
            ) from error

    @property
    def page(self) -> str:
        """Where the run is seen: its page, or how to send it there."""
        if self._run is None:
            return ""
        return str(self._run.url or f"wandb sync {Path(self._run.dir).parent}")

    def handle(self, event: Event) -> None:
        if self._run is None:
            return
        try:
            self._tell(event)
        except Exception as error:  # the library's own, its transport's, its process's: no run may end of them
            self._give_up(error)

    def close(self) -> None:
        """End it there, as finished or failed. What could not be sent stays in the run folder."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=self._code)
        except Exception as error:
            folder = Path(run.dir).parent
            log.warning(
                "Weights & Biases has not got everything: %s; send it with `wandb sync %s`", _first_line(error), folder
            )

    def _give_up(self, error: Exception) -> None:
        self._run = None
        log.warning("Weights & Biases is no longer told, the run goes on: %s", _first_line(error))

    def _tell(self, event: Event) -> None:
        match event:
            case Stepped():
                self._log(event, stepped(event))
            case Validated():
                self._log(event, validated(event))
            case Sampled():
                self._log(event, self._samples(event))
            case Finished() | Paused():
                self._code = 0

    def _log(self, event: Event, values: Mapping[str, Any]) -> None:
        self._run.log({**values, "step": event.step})

    def _samples(self, event: Sampled) -> dict[str, list[Any]]:
        by_prompt: dict[str, list[Sample]] = {}
        for sample in event.samples:
            by_prompt.setdefault(sample.prompt, []).append(sample)
        # A prompt may be longer than a file's name may be, and hold what one may not: it is the caption.
        return {
            f"samples/{number:02d}": [self._picture(sample) for sample in samples]
            for number, samples in enumerate(by_prompt.values())
        }

    def _picture(self, sample: Sample) -> Any:
        return self._library.Image(str(self._out / sample.file), caption=f"{sample.prompt} (seed {sample.seed})")


def _library() -> Any:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # their crash reports go to a host that nobody named
    try:
        return import_module("wandb")
    except ImportError as error:
        raise RecipeError(
            f"Weights & Biases cannot be loaded: {error}",
            todo="pip install 'gesso[wandb]', or leave track.wandb out",
        ) from error


def _quiet(library: Any) -> Any:
    """The recipe and the events are told, and nothing of this machine: no output, sources, packages, hardware."""
    return library.Settings(
        silent=True,
        console="off",
        host="",
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=_START,
        finish_timeout=_END,
        finish_timeout_raises=True,
    )


def _in_netrc(host: str) -> bool:
    """Whether `wandb login` has left a key for the host, where it leaves it."""
    from requests.utils import get_netrc_auth

    return get_netrc_auth(host) is not None


def _identity(out: Path) -> str:
    """The run's id there, kept in the run folder so that a run that goes on is the same one."""
    path = out / FOLDER / "id"
    try:
        if found := path.read_text(encoding="utf-8").strip():
            return found
    except (FileNotFoundError, UnicodeDecodeError):
        pass
    made = secrets.token_hex(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, f"{made}\n".encode())
    return made


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
