"""Get images from Debian packages: photographs, drawings and textures, checked against their checksums."""

import hashlib
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """Files of one package that all show the same kind of thing.

    Attributes:
        package: name in Debian 12.
        version: as ``apt-get download`` takes it.
        sha256: of the package.
        kind: what the files show; a word of the captions.
        patterns: globs of the files, from the root of the unpacked package.
        licence: what the package's copyright file says about these files.
    """

    package: str
    version: str
    sha256: str
    kind: str
    patterns: tuple[str, ...]
    licence: str


_KDE_PHOTOGRAPHS = (
    "BytheWater",
    "ColdRipple",
    "ColorfulCups",
    "EveningGlow",
    "FallenLeaf",
    "Grey",
    "OneStandsOut",
    "Path",
)

SOURCES = (
    Source(
        "mate-backgrounds",
        "1.26.0-1",
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        "photograph",
        ("usr/share/backgrounds/mate/nature/*.jpg",),
        "GPL-2+",
    ),
    Source(
        "plasma-workspace-wallpapers",
        "4:5.27.5-2",
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
        "photograph",
        tuple(f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg" for name in _KDE_PHOTOGRAPHS),
        "GPL-2+",
    ),
    Source(
        "openclipart-png",
        "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "drawing",
        tuple(
            f"usr/share/openclipart/png/{folder}/**/*.png"
            for folder in ("animals", "buildings", "decorations", "food", "people", "plants", "recreation", "tools")
        ),
        "public domain",
    ),
    Source(
        "openarena-081-textures",
        "0.8.5split-14",
        "72bf05abd5286a1523b56ca04e25bceb775813d747f92ecd20749d512361a81f",
        "texture",
        ("textures/*/*.jpg", "textures/*/*.tga"),
        "GPL-2+",
    ),
)


def fetch(source: Source, work_dir: Path) -> Path:
    """Download and unpack a package into `work_dir` unless it is there, and return its folder.

    Raises:
        RuntimeError: apt-get is missing, or the package is not the one that the model was trained on.
    """
    folder = work_dir / "packages" / source.package
    if folder.exists():
        return folder
    archive = _download(source, work_dir / "packages")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise RuntimeError(f"{archive} has sha256 {digest}, expected {source.sha256}: delete it and run again")
    partial = folder.with_suffix(".partial")
    subprocess.run(["dpkg-deb", "-x", archive, partial], check=True)
    for game_data in partial.rglob("*.pk3"):
        with zipfile.ZipFile(game_data) as members:
            members.extractall(partial)
    partial.rename(folder)
    return folder


def _download(source: Source, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{source.package}_*.deb"
    if not list(folder.glob(name)):
        if shutil.which("apt-get") is None:
            raise RuntimeError(f"apt-get was not found: put {name} of Debian 12 into {folder}")
        subprocess.run(["apt-get", "download", f"{source.package}={source.version}"], cwd=folder, check=True)
    return next(folder.glob(name))


def files(source: Source, folder: Path) -> list[Path]:
    """The images of `source` in its unpacked package, in a fixed order."""
    return sorted({path for pattern in source.patterns for path in folder.glob(pattern)})
