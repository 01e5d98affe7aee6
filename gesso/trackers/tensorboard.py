"""TensorBoard event files, in TensorBoard's own records and with no training framework.

They are written here and now: TensorBoard's own EventFileWriter has a thread for it, which dies of a full disk with a
traceback that nobody can catch.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from gesso.errors import RecipeError
from gesso.events import Event, Sample, Sampled, Started, Stepped, Validated
from gesso.storage import Sink

log = logging.getLogger(__name__)


class Tensorboard:
    """Writes `train/loss`, `train/lr`, `train/grad_norm`, the held-out loss and sample pictures under `folder`.

    Where groups of parameters learn at rates of their own, `train/lr_<group>` has each. `validate/loss` is the held-out
    loss, `validate/level_<timestep>` that at one noise level; the standard error of each is the scalar of the same name
    under `validate_error/`.

    A run that resumes from step N says so with a session start at N + 1, upon which TensorBoard drops what it had read
    from there on: repeated steps replace the earlier ones. Picture files are read from `run_folder`.
    """

    def __init__(self, folder: Path, run_folder: Path) -> None:
        try:
            event_pb2, summary_pb2, tensor_pb2, types_pb2 = (
                import_module(f"tensorboard.compat.proto.{name}_pb2")
                for name in ("event", "summary", "tensor", "types")
            )
            metadata = import_module("tensorboard.plugins.image.metadata")
            records = import_module("tensorboard.summary.writer.record_writer")
        except ImportError as error:
            raise RecipeError(
                f"TensorBoard cannot be loaded: {error}",
                todo="pip install tensorboard, or set track.tensorboard = false",
            ) from error
        self._event, self._summary, self._tensor, self._types = event_pb2, summary_pb2, tensor_pb2, types_pb2
        self._pictures = metadata
        self._run_folder = run_folder
        self._writer: Any = None
        self._handle: int | None = None
        try:
            self._handle = _open(folder)
            self._writer = records.RecordWriter(Sink(self._handle))
            self._add(0, file_version="brain.Event:2")  # what makes it an event file
        except OSError as error:
            self._give_up(error)

    def handle(self, event: Event) -> None:
        """Write what TensorBoard can show. A disk that refuses ends these files, with a warning, and not the run."""
        if self._writer is None:
            return
        try:
            self._tell(event)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """End the file; what comes after is not written."""
        handle, self._handle, self._writer = self._handle, None, None
        if handle is not None:
            try:
                os.close(handle)
            except OSError as error:  # network disks refuse as late as this
                log.warning("the last TensorBoard events were not written: %s", error)

    def _give_up(self, error: OSError) -> None:
        log.warning("TensorBoard events are no longer written, the run goes on: %s", error.strerror or error)
        self.close()

    def _tell(self, event: Event) -> None:
        match event:
            case Started():
                start = self._event.SessionLog(status=self._event.SessionLog.START)
                self._add(event.step + 1 if event.step else 0, session_log=start)
            case Stepped():
                self._scalars(event.step, stepped(event))
            case Validated():
                self._scalars(event.step, validated(event))
            case Sampled():
                self._samples(event)
            case _:
                return

    def _add(self, step: int, **content: Any) -> None:
        event = self._event.Event(step=step, wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        found = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(step, summary=self._summary.Summary(value=found))

    def _samples(self, event: Sampled) -> None:
        by_prompt: dict[str, list[Sample]] = {}
        for sample in event.samples:
            by_prompt.setdefault(sample.prompt, []).append(sample)
        for number, (prompt, samples) in enumerate(by_prompt.items()):
            encoded = [self._encoded(sample) for sample in samples]
            pngs = [png for png in encoded if png]
            if not pngs:
                continue
            width, height = struct.unpack(">II", pngs[0][16:24])  # the IHDR chunk is always the first
            tensor = self._tensor.TensorProto(
                dtype=self._types.DT_STRING,
                string_val=[b"%d" % width, b"%d" % height, *pngs],
                tensor_shape={"dim": [{"size": 2 + len(pngs)}]},
            )
            seeds = ", ".join(str(sample.seed) for sample in samples)
            described = self._pictures.create_summary_metadata(
                display_name=f"{number:02d} {prompt}", description=f"{prompt} (seed {seeds})", converted_to_tensor=True
            )
            value = self._summary.Summary.Value(tag=f"samples/{number:02d} {prompt}", metadata=described, tensor=tensor)
            self._add(event.step, summary=self._summary.Summary(value=[value]))

    def _encoded(self, sample: Sample) -> bytes | None:
        path = self._run_folder / sample.file
        try:
            data = path.read_bytes()
        except OSError as error:
            log.warning("a sample is missing in TensorBoard: %s", error)
            return None
        return data if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 24 else None


def stepped(event: Stepped) -> dict[str, float]:
    """The scalars of a step by tag."""
    rates = {f"train/lr_{group}": rate for group, rate in event.rates.items()}
    return {"train/loss": event.loss, "train/lr": event.lr, **rates, "train/grad_norm": event.grad_norm}


def validated(event: Validated) -> dict[str, float]:
    """The scalars of a measurement by tag: the loss, each noise level, and the standard error of each.

    Timesteps have four digits, for TensorBoard orders tags as text.
    """
    levels = {"loss": event.loss, **{f"level_{t:04d}": loss for t, loss in event.by_timestep.items()}}
    errors = {"loss": event.error, **{f"level_{t:04d}": error for t, error in event.error_by_timestep.items()}}
    return {
        **{f"validate/{name}": loss for name, loss in levels.items()},
        **{f"validate_error/{name}": error for name, error in errors.items()},
    }


def _open(folder: Path) -> int:
    """A new event file; TensorBoard goes by the name's beginning and reads the files of a folder in their order."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for number in range(1000):
        try:
            path = folder / f"{stem}.{number:03d}"
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        except FileExistsError:
            continue
    raise FileExistsError(f"{stem}.000 to .999 are there already")
