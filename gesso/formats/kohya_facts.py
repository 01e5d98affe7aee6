"""What kohya's `ss_` keys say of a run, which A1111, Forge and managers of LoRAs show.

No path and no name of a folder is among them, and captions only where they are asked for. Where kohya has the name of a
folder of pictures, the group stands here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gesso.data import captions
from gesso.data.captions import Style
from gesso.data.sources.made import style
from gesso.schema import Recipe

GROUP = "instance"


def facts(recipe: Recipe, rows: Sequence[Mapping[str, Any]], *, side: int, tags: bool) -> dict[str, str]:
    """kohya's keys and their values, all text.

    rows: pictures as data.lock.json lists them; side: in pixels, of the pictures. tags: also how often each part of a
    caption occurs.
    """
    train, optim = recipe.train, recipe.optim
    own = [row for row in rows if row.get("group") == GROUP]
    known: dict[str, object] = {
        "ss_resolution": (side, side),
        "ss_steps": train.steps,
        "ss_max_train_steps": train.steps,
        "ss_total_batch_size": train.batch,
        "ss_learning_rate": optim.lr,
        "ss_lr_scheduler": optim.schedule,
        "ss_lr_warmup_steps": optim.warmup,
        "ss_optimizer": optim.name,
        "ss_seed": recipe.seed,
        "ss_enable_bucket": train.buckets,
        "ss_random_crop": train.crop == "random",
        "ss_flip_aug": train.flip,
    }
    if "text_encoder" in recipe.model.train and optim.text_encoder_lr:
        known["ss_text_encoder_lr"] = optim.text_encoder_lr
    if own:
        known["ss_num_train_images"] = len(own)
        known["ss_num_reg_images"] = len(rows) - len(own)
        known["ss_dataset_dirs"] = json.dumps({GROUP: {"n_repeats": 1, "img_count": len(own)}})
    if own and tags:
        known["ss_tag_frequency"] = json.dumps({GROUP: _counted(recipe, own)}, ensure_ascii=False)
    return {name: str(value) for name, value in known.items()}


def phrases(recipe: Recipe) -> tuple[str, str]:
    """What a prompt needs for the model to show what it learned: the first caption for all, and all trigger words.

    Of a source without a trigger its one caption for all stands for it. Both are "" where each picture has its own.
    """
    own = [each for each in recipe.data if each.group == "instance"]  # what is said of the class calls up nothing new
    prompts = [captions.plain(each.prompt or "", style(each)) for each in own if each.prompt or each.trigger]
    words = [each.trigger.strip() or captions.plain(each.prompt or "", style(each)) for each in own]
    return next(iter(prompts), ""), ", ".join(dict.fromkeys(word for word in words if word))


def _counted(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often each part of a caption occurs, in lower case as kohya counts, the most frequent first.

    Which source a row is from is not written down: with one source, its trigger counts too.
    """
    worded = style(recipe.data[0]) if len(recipe.data) == 1 else Style()
    found = Counter[str]()
    for row in rows:
        for caption in row.get("captions", ()):
            parts = (part.strip().lower() for part in captions.plain(str(caption), worded).split(worded.separator))
            found.update(part for part in parts if part)
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))
