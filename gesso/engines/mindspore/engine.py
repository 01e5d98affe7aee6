"""The MindSpore engine: Ascend NPUs where there are any, and the CPU. Importing this file imports no framework."""

from __future__ import annotations

import io
import logging
import os
import warnings
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from gesso.engines.mindspore import versions
from gesso.schema import MindSporeEngine

if TYPE_CHECKING:
    from gesso.engines.mindspore.executor import Engine


def create(options: MindSporeEngine, *, device: str, precision: str, checkpointing: bool = False) -> Engine:
    """The engine on `device` ("auto" for the best) in `precision` ("auto" for the device's own).

    DeviceError where MindSpore and mindone are not here in versions that work together, or the device is not.
    """
    versions.check()
    # What these libraries say of one another while they are imported is not about the user's run.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("GLOG_v", "3")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            from mindone.diffusers import StableDiffusionPipeline  # noqa: F401  (it is looked up by name later)
            from mindone.transformers import CLIPTextModel  # noqa: F401
        except (ImportError, OSError, RuntimeError) as error:
            raise versions.broken(error) from error

        from gesso.engines.mindspore.devices import choose, select
        from gesso.engines.mindspore.executor import Engine
    for name in ("mindone", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    chosen, effective, description = choose(device, precision)
    select(chosen)
    return Engine(chosen, effective, description, checkpointing, bool(options.compile))
