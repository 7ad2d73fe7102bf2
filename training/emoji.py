"""Download the Noto emoji images, the npm package ``emoji-datasource-google``, and check its checksum."""

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

from PIL import Image

PACKAGE = "emoji-datasource-google@16.0.0"
ARCHIVE = "emoji-datasource-google-16.0.0.tgz"
SHA512 = (
    "6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31"
    "104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc"
)
PICTURES = "package/img/google/64/"
INDEX = "package/emoji.json"


def fetch(work_dir: Path) -> Path:
    """Download and unpack the images into `work_dir` if needed, and return their folder.

    Args:
        work_dir: where the archive is kept; an archive that is already there is not downloaded again.

    Raises:
        RuntimeError: npm is missing, or the archive has another checksum.
    """
    folder = work_dir / "emoji"
    archive = folder / ARCHIVE
    folder.mkdir(parents=True, exist_ok=True)
    if not archive.exists():
        _pack(folder)
    digest = hashlib.sha512(archive.read_bytes()).hexdigest()
    if digest != SHA512:
        raise RuntimeError(f"{archive} has sha512 {digest}, expected {SHA512}: delete it and run again")
    if not (folder / INDEX).exists():
        _unpack(archive, folder)
    return folder


def _pack(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm is not installed: install it, or put {ARCHIVE} into {folder}")
    subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        wanted = [member for member in tar if member.name.startswith((PICTURES, INDEX))]
        tar.extractall(folder, wanted, filter="data")


def read_pictures(folder: Path, short_names: list[str]) -> dict[str, Image.Image]:
    """The 64×64 RGBA images of the emoji called `short_names`."""
    entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    files = {entry["short_name"]: entry["image"] for entry in entries}
    return {name: Image.open(folder / PICTURES / files[name]).convert("RGBA") for name in short_names}
