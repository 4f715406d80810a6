"""Fewer patches of an image, and the numbers that follow: tokens, tiles, positions."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from lora_doctor.tiny_model.config_roles import Node, are_pairs, flat_ints, map_ints, role_of
from lora_doctor.tiny_model.shrink.sizes import Changes, Sizes


class Grid(NamedTuple):
    """Patches per side of an image before and after, and its side in pixels before and after."""

    before: int
    after: int
    side: int
    small_side: int


def first_grid(root: Node) -> int:
    """Patches per side that every merge factor of the tree divides."""
    need = 1
    for node in root.walk():
        stages = [len(v) for k, v in node.values.items() if role_of(k, v) == "depths"]
        if stages and "patch_size" in node.values:
            need = max(need, 2 ** max(stages))
        for key, value in node.values.items():
            if role_of(key, value) == "merge" and isinstance(value, int) and 1 < value <= 8:
                need = max(need, 2 * value)
    return next((g for g in (4, 6, 8, 12, 16) if g >= need and g % need == 0), 16)


def fix_image(before: dict[str, Any], new: dict[str, tuple[str, Any]], sizes: Sizes) -> list[Grid]:
    """Fewer patches: `grid` per side. Returns what the images were and what they are."""
    if "image" in sizes.keep_roles:
        return []
    grids: list[Grid] = []
    patches = [
        n for k, v in before.items() if role_of(k, v) == "patch" for n in list(flat_ints(v))[-1:]
    ]
    if not patches:
        return []
    patch = max(patches)
    for key, value in before.items():
        if role_of(key, value) != "image" or not list(flat_ints(value)):
            continue
        side = max(flat_ints(value))
        if patch <= 0 or side // patch <= sizes.grid:
            continue
        new[key] = ("image", map_ints(value, lambda n: sizes.grid * patch if n > patch else n))
        grids.append(Grid(side // patch, sizes.grid, side, sizes.grid * patch))
    return grids


def shrink_tokens(root: Node, grids: list[Grid], changes: Changes) -> None:
    """Counts of patches and of image tokens, anywhere in the tree, follow the patches per side, and
    so do images that no patch size stands beside."""
    _share_sides(root, grids, changes)
    for node in root.walk():
        for key, count in list(node.values.items()):
            if role_of(key, count) != "tokens" or not isinstance(count, int):
                continue
            found = [_token_count(count, grid.before, grid.after) for grid in grids]
            small = min(count, 8) if "quer" in key else next((n for n in found if n), 0)
            if not small and grids and count > max(grid.before for grid in grids) ** 2:
                # more tokens than patches: a default that no image size can satisfy
                small = grids[0].after ** 2 if "position" not in key else 0
            if small and small != count:
                node.set(key, small)
                changes.note("image", node.path, key, count, small)


def shrink_tiles(root: Node, grids: list[Grid], changes: Changes) -> None:
    """Resolutions that an image is cut into tiles of (LLaVA-NeXT's pinpoints): as many tiles."""
    for node in root.walk():
        for key, points in list(node.values.items()):
            if not are_pairs(points):
                continue
            if role_of(key, points) == "maps":
                maps = _small_maps(points, grids)
                node.set(key, maps)
                changes.note("image", node.path, key, points, maps)
                continue
            for grid in grids:
                if all(size % grid.side == 0 for point in points for size in point):
                    small = [[n // grid.side * grid.small_side for n in point] for point in points]
                    node.set(key, small)
                    changes.note("image", node.path, key, points, small)
                    break


def _share_sides(root: Node, grids: list[Grid], changes: Changes) -> None:
    """Images of a tower whose config has no patches (Hiera's strides) are as large as the others
    that they were as large as before; so is a number of patches per side that is written down."""
    sides = {grid.side: grid.small_side for grid in grids}
    counts = {grid.before: grid.after for grid in grids}
    for node in root.walk():
        for key, value in list(node.values.items()):
            # a patch as large as an image of another tower is one that is cut out for that tower
            known = sides if role_of(key, value) in ("image", "patch") else {}
            if _PER_SIDE.search(key) and isinstance(value, int):
                known = counts
            small = map_ints(value, lambda n, known=known: known.get(n, n)) if known else value
            if small != value:
                node.set(key, small)
                changes.note("image", node.path, key, value, small)


#: How many patches an image has per side (SAM's prompt encoder takes them from the two sizes).
_PER_SIDE = re.compile(r"^image_embedding_size$|^(patch_)?grid_size$")


def _small_maps(maps: Any, grids: list[Grid]) -> Any:
    """Heights and widths of the outputs of a tower at several scales, for the small image."""
    numbers = set(flat_ints(maps))
    for grid in sorted(grids, key=lambda grid: -grid.before):
        before, after = grid.before, grid.after
        if all(n % before == 0 or before % n == 0 for n in numbers):
            small = {n: max(1, n * after // before) for n in numbers}
            return map_ints(maps, small.__getitem__)
    return maps


def _token_count(count: int, grid: int, small: int) -> int:
    """The number of tokens for `small` patches per side, where `count` belonged to `grid`."""
    for extra in (0, 1):
        side = round((count - extra) ** 0.5) if count > extra else 0
        if side and side * side == count - extra and grid % side == 0:
            return max(1, small // (grid // side)) ** 2 + extra
    return 0
