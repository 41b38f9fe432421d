"""Sizes by name: what `image_tower.size` and `text_tower.size` stand for. A key that is given beside a size counts.

Sources: ViT-S, B, L: Dosovitskiy et al. 2021, table 1, and Touvron et al. 2021 (DeiT), table 1; M: OpenCLIP's ViT-M,
between the two; text towers: Radford et al. 2021, tables 19 and 20, and OpenCLIP's ViT-S; RN50: Radford et al. 2021,
section 2.4; convolutional stems: Xiao et al. 2021, appendix A, which take one block's place.
"""

from typing import Any

Sizes = dict[str, Any]

_TOWERS: dict[str, Sizes] = {
    "S": {"width": 384, "layers": 12, "heads": 6},
    "M": {"width": 512, "layers": 12, "heads": 8},
    "B": {"width": 768, "layers": 12, "heads": 12},
    "L": {"width": 1024, "layers": 24, "heads": 16},
}


def _vit(letter: str, patch: int, side: int) -> tuple[str, Sizes]:
    return f"{letter}/{patch}@{side}", {**_TOWERS[letter], "patch_size": patch, "image_size": side}


IMAGE_TOWERS: dict[str, Sizes] = dict(
    [
        _vit("S", 8, 112),
        _vit("S", 16, 112),
        _vit("M", 14, 112),
        _vit("B", 16, 112),
        _vit("B", 16, 224),
        _vit("B", 32, 224),
        _vit("B", 32, 336),
        _vit("L", 14, 224),
    ]
)
IMAGE_TOWERS["B/32@336"]["cut_edges"] = True  # 336 is ten and a half patches
IMAGE_TOWERS |= {
    "conv-S/16@112": IMAGE_TOWERS["S/16@112"] | {"layers": 11, "stem_channels": [48, 96, 192, 384]},
    "conv-S/16@224": IMAGE_TOWERS["S/16@112"] | {"layers": 11, "stem_channels": [48, 96, 192, 384], "image_size": 224},
    "RN50@224": {"width": 64, "stages": [3, 4, 6, 3], "heads": 32, "patch_size": 32, "image_size": 224},
}
TEXT_TOWERS: dict[str, Sizes] = {
    "S": {"width": 384, "layers": 12, "heads": 6},
    "B": {"width": 512, "layers": 12, "heads": 8},
    "L": {"width": 768, "layers": 12, "heads": 12},
}
SIZED = {"image_tower": IMAGE_TOWERS, "text_tower": TEXT_TOWERS}


def with_sizes(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's nested values with the keys that its towers' sizes stand for; those that are given stay.

    Sizes that nobody knows are left for the schema to refuse.
    """
    for section, sizes in SIZED.items():
        given = values.get(section)
        if isinstance(given, dict) and (found := sizes.get(str(given.get("size")))):
            keys = {key: value for key, value in found.items() if key != "image_size"}
            values = values | {section: keys | given}
            if "image_size" in found:
                image = values.get("image", {})
                values = values | {"image": {"size": found["image_size"]} | image if isinstance(image, dict) else image}
    return values


def without_sizes(values: dict[str, Any], section: str) -> None:
    """Remove from a recipe's values what a tower's size would set, for another size to count."""
    keys = {key for sizes in SIZED[section].values() for key in sizes}
    for key in keys & set(values.get(section, {})):
        del values[section][key]
    if "image_size" in keys:
        values.get("image", {}).pop("size", None)
