"""docs/settings.md from the schema: `python -m pocketclip.recipe.document > docs/settings.md`."""

import sys
import types
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from pocketclip.recipe.toml import known_settings
from pocketclip.recipe.zoo import IMAGE_TOWERS, SIZED

HEAD = """# Settings

Every key that a recipe can hold, with its type, its bounds and its default. This page is generated from
`src/pocketclip/recipe/` by `python -m pocketclip.recipe.document`; a test holds the two together.

A recipe file states only what differs from these defaults; on the command line any key can be given as
`section.key=value`, for example `pocketclip train quickstart train.epochs=5 name=short`.
"""


SIZES = """
## Sizes

What `image_tower.size` and `text_tower.size` stand for; any key can be given beside a size, and counts.
"""

OPTIONS = """
## From the first implementation's options

| its option | here |
|---|---|
| `-image_encoder="B/32@224"` | `image_tower.size="B/32@224"` |
| `-text_encoder="B"` | `text_tower.size="B"` |
| `-image_dim_out`, `-text_dim_out` | `image_tower.width`, `text_tower.width` |
| `-embedding_dim` | `model.embedding_width` |
| `-max_temperature` | `model.max_logit_scale` |
| `-vocab_size` | `tokenizer.vocabulary_size` |
| `-max_length` | `text_tower.context_length` |
| `-batch_size`, `-epochs`, `-lr` | `train.batch_size`, `train.epochs`, `train.learning_rate` |
| `-fine_tuning=True` (100 steps) | `recipes/finetune.toml`: `train.start_from`, `train.steps=100` |
| `-warmup` (steps) | `train.warmup` (share of the run's steps) |
| `-decay`, `-beta_1`, `-beta_2`, `-epsilon` | `train.weight_decay`, `train.beta_1`, `train.beta_2`, `train.epsilon` |
| `-device="gpu"` | `train.device="cuda"`; by itself the best there is |
| `-load_last_checkpoint=True` | nothing to say: the same command goes on where the run was |
"""


def settings_page() -> str:
    """The whole page, Markdown."""
    lines, section = [HEAD], None
    for key, field in known_settings():
        name, _, _ = key.rpartition(".")
        if name != section:
            section = name
            lines.append(f"\n## {'[' + section + ']' if section else 'The run'}\n")
            lines.append("| key | type | default | meaning |\n|---|---|---|---|")
        default = _as_toml(field.default)
        lines.append(f"| `{key}` | {_type(field)} | `{default}` | {field.description} |")
    return "\n".join([*lines, SIZES, *_sizes(), OPTIONS])


def _sizes() -> list[str]:
    """The table of sizes."""
    lines = ["| key | value | sets |", "|---|---|---|"]
    for section, sizes in SIZED.items():
        for name, keys in sizes.items():
            image_size = f"image.size = {keys['image_size']}, " if sizes is IMAGE_TOWERS else ""
            others = (f"{key} = {_as_toml(value)}" for key, value in keys.items() if key != "image_size")
            lines.append(f'| `{section}.size` | `"{name}"` | {image_size}{", ".join(others)} |')
    return lines


def _type(field: FieldInfo) -> str:
    bounds = []
    for constraint in field.metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if getattr(constraint, name, None) is not None:
                bounds.append(f"{sign} {getattr(constraint, name)}")
    return " ".join([_type_name(field.annotation), ", ".join(bounds)]).strip()


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " or ".join(f'`"{value}"`' for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        inner = _type_name(parts[0])
        if parts[-1] is types.EllipsisType or parts[-1] is ...:
            return f"list of {inner}"
        return f"{len(parts)} {inner}s" if len(set(parts)) == 1 else f"[{', '.join(map(_type_name, parts))}]"
    return {int: "integer", float: "number", str: "text", bool: "boolean"}[annotation]


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_as_toml, value)) + "]"
    return str(value)


if __name__ == "__main__":
    sys.stdout.write(settings_page())
