"""What a model was trained with, from its diffusers scheduler configuration: its schedule and its prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from gesso.errors import RecipeError
from gesso.objective.schedules import Exploding, Flow, Karras, NoiseSchedule, Schedule

Config = Mapping[str, Any]
HOW = {"edm": "with EDM's preconditioning", "flow": "by flow matching"}
WHERE = "scheduler/scheduler_config.json"


def from_scheduler(config: Config, *, zero_snr: bool | None = None, edm_style: bool = False) -> NoiseSchedule:
    """The schedule that a model was trained with.

    zero_snr: None keeps the model's own. edm_style: the same schedule as x0 + sigma·eps.
    RecipeError for a configuration whose numbers are none, and where a model's way of noising knows no such change.
    """
    kind = _kind(config)
    if kind == "ddpm":
        preserving = _preserving(config, zero_snr)
        return Exploding(preserving=preserving) if edm_style else preserving
    for key, asked in (("zero_snr", zero_snr is not None), ("edm_style", edm_style)):
        if asked:
            raise RecipeError(
                f"objective.{key} has no effect on this model: it is trained {HOW[kind]}, which has noise levels "
                "of its own",
                todo=f"leave objective.{key} out",
            )
    return _karras(config) if kind == "edm" else _flow(config)


def prediction(config: Config, asked: str = "auto") -> str:
    """The row of predictions.py that a model's network answers, or another that is `asked` of it.

    RecipeError where the model is trained in a way that fixes its prediction.
    """
    kind, told = _kind(config), str(config.get("prediction_type", "epsilon"))
    if kind == "ddpm":
        return told if asked == "auto" else asked
    if asked != "auto":
        raise RecipeError(
            f'objective.prediction is "{asked}", but this model is trained {HOW[kind]}, which fixes what it predicts',
            todo='set objective.prediction = "auto"',
        )
    if kind == "flow":
        return "flow"
    # What diffusers calls epsilon is F with a positive c_out here, and v is −F.
    rows = {"epsilon": "edm", "v_prediction": "v_prediction"}
    if told not in rows:
        raise RecipeError(
            f'the model\'s prediction_type "{told}" is not known {HOW[kind]}',
            where=WHERE,
            todo="gesso knows epsilon and v_prediction there; is the model whole?",
        )
    return rows[told]


def _kind(config: Config) -> Literal["ddpm", "edm", "flow"]:
    name = str(config.get("_class_name", ""))
    if "FlowMatch" in name:
        return "flow"
    return "edm" if "EDM" in name else "ddpm"


def _preserving(config: Config, zero_snr: bool | None) -> Schedule:
    given = config.get("trained_betas") or ()
    if not isinstance(given, list | tuple):
        raise _lacks("trained_betas", given)
    return Schedule(
        betas=str(config.get("beta_schedule", "scaled_linear")),
        beta_start=_of(config, "beta_start", 0.00085),
        beta_end=_of(config, "beta_end", 0.012),
        timesteps=len(given) or int(_of(config, "num_train_timesteps", 1000)),
        zero_snr=bool(config.get("rescale_betas_zero_snr", False)) if zero_snr is None else zero_snr,
        given=tuple(_number(beta, "trained_betas") for beta in given),
    )


def _karras(config: Config) -> Karras:
    ramp = str(config.get("sigma_schedule", "karras"))
    made = Karras(
        ramp=ramp,
        sigma_min=_of(config, "sigma_min", 0.002),
        sigma_max=_of(config, "sigma_max", 80.0),
        sigma_data=_of(config, "sigma_data", 0.5),
        rho=_of(config, "rho", 7.0),
        timesteps=int(_of(config, "num_train_timesteps", 1000)),
    )
    if ramp not in ("karras", "exponential") or made.sigma_min >= made.sigma_max:
        raise RecipeError(
            f'the model\'s noise goes from sigma_min {made.sigma_min:g} to sigma_max {made.sigma_max:g} by "{ramp}"',
            where=WHERE,
            todo="sigma_min must be below sigma_max; gesso knows karras and exponential",
        )
    return made


def _flow(config: Config) -> Flow:
    # A shift that depends on the picture's size is for drawing: such models are trained on unshifted levels.
    shift = 1.0 if config.get("use_dynamic_shifting") else _of(config, "shift", 1.0)
    return Flow(shift=shift, timesteps=int(_of(config, "num_train_timesteps", 1000)))


def _of(config: Config, name: str, default: float) -> float:
    return _number(config.get(name, default), name)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _lacks(name, value)
    return float(value)


def _lacks(name: str, value: Any) -> RecipeError:
    return RecipeError(
        f"the model's configuration lacks {name}: it is {json.dumps(value)}, must be a number above 0",
        where=WHERE,
        todo="fetch or export the model again, or use another one",
    )
