"""The recipes that ship: in a source checkout `recipes/`, in an installed wheel `<prefix>/share/thurl/recipes/`."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from thurl.errors import DataError, UsageError
from thurl.messages import nearest


__all__ = ["CopiedRecipe", "copy_recipe", "find_recipe", "recipe_summary", "shipped_recipes"]

# How recipes, their comments and the launcher configurations name the files that ship beside them.
_CONFIGURATION = re.compile(r"(?:accelerate|deepspeed)_configs/[\w-]+\.(?:yaml|json)")
_LAUNCH = re.compile(r"^# +((?:accelerate launch|torchrun) .*?)(?: {2,}.*)?$", re.MULTILINE)


def _folder() -> Path | None:
    checkout = Path(__file__).resolve().parents[3]
    candidates = [checkout / "recipes"] if (checkout / "pyproject.toml").is_file() else []
    candidates += [Path(base) / "share" / "thurl" / "recipes" for base in (sysconfig.get_path("data"), sys.prefix)]
    return next((folder for folder in candidates if folder.is_dir()), None)


def shipped_recipes() -> dict[str, Path]:
    """Name (`visualquality_r1`, `tiny/visualquality_r1`) to file, sorted with the tiny ones last."""
    folder = _folder()
    if folder is None:
        return {}
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return dict(sorted(names.items(), key=lambda item: (item[0].startswith("tiny/"), item[0])))


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """A recipe by file name, or by the name of a shipped one.

    Raises:
        UsageError: neither exists.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    shipped, key = shipped_recipes(), _key(name)
    if key in shipped:
        return shipped[key]
    raise UsageError(
        f"recipe {name} is neither a file nor a recipe that ships{nearest(key, shipped)} (`thurl list` shows them)"
    )


def _key(name: str | os.PathLike[str]) -> str:
    return Path(name).as_posix().removeprefix("recipes/").removesuffix(".yaml")


@dataclass(frozen=True)
class CopiedRecipe:
    """What `copy_recipe` left in the user's folder.

    Attributes:
        recipe: the recipe, relative to the folder.
        written, present: files relative to the folder; those in `present` were there with the same content.
        command: starts it from the folder, as the head of the recipe says.
    """

    recipe: Path
    written: tuple[Path, ...]
    present: tuple[Path, ...]
    command: str


def copy_recipe(name: str, folder: str | os.PathLike[str], *, force: bool = False) -> CopiedRecipe:
    """Copy a recipe that ships, and every launcher and DeepSpeed configuration it names, below a folder.

    Files keep their places (`recipes/`, `accelerate_configs/`, `deepspeed_configs/`), so that the commands in the
    recipe and in the documents hold in that folder.

    Args:
        name: as `thurl list` shows it.
        folder: made where it does not exist.
        force: write over files that differ.

    Raises:
        UsageError: no such recipe, a folder that is none, or files there that differ, all of them; nothing is written.
        DataError: the folder cannot be written.
    """
    from thurl.training.results import write_atomically

    shipped, key, target = shipped_recipes(), _key(name), Path(folder).expanduser()
    if key not in shipped:
        raise UsageError(f"recipe {name} does not ship{nearest(key, shipped)} (`thurl list` shows them)")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; name a folder to copy the recipe to")
    contents = _with_configurations(Path(f"recipes/{key}.yaml"), shipped[key].parents[key.count("/") + 1])
    present = tuple(place for place, content in contents.items() if _holds(target / place, content))
    taken = [place for place in contents if place not in present and os.path.lexists(target / place)]
    if taken and not force:
        raise UsageError(
            [f"{target / place}: there is such a file, and it differs; --force replaces it" for place in taken]
        )
    written = tuple(place for place in contents if place not in present)
    try:
        for place in written:
            write_atomically(target / place, contents[place])
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error}") from error
    recipe = next(iter(contents))
    launches = _LAUNCH.findall(contents[recipe].decode())
    return CopiedRecipe(recipe, written, present, next(line for line in launches if recipe.as_posix() in line))


def _with_configurations(recipe: Path, root: Path) -> dict[Path, bytes]:
    """The recipe and all that it names, and that those name, by their place below `root`."""
    contents, waiting = {}, [recipe]
    while waiting:
        place = waiting.pop()
        contents[place] = (root / place).read_bytes()
        named = {Path(name) for name in _CONFIGURATION.findall(contents[place].decode())}
        waiting += sorted(name for name in named - contents.keys() if (root / name).is_file())
    return contents


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def recipe_summary(path: Path) -> str:
    """First comment of a recipe file, which says what it trains."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            return line.removeprefix("# ").strip()
        if line.strip() and not line.startswith("#"):
            break
    return ""
