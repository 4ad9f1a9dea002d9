"""Folders and files sent in parts, where what travels at once is limited: zipped, cut, summed, joined. No packages."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

MANIFEST = ".parts.json"
PART_BYTES, PARTS_A_GROUP = 15 << 20, 3


def split(
    name: str, sources: dict[str, Path], out: Path, part_bytes: int = PART_BYTES, most: int = PARTS_A_GROUP
) -> list[Path]:
    """Zip `sources` (name inside -> file or folder) and cut the archive into parts, `most` in each folder of `out`.

    Every folder, 1, 2, …, also holds the manifest NAME.parts.json. Returns the folders.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    archive = out / f"{name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for inside, source in sources.items():
            for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
                if path.is_file() and not path.name.startswith("."):
                    file.write(path, str(Path(inside) / path.relative_to(source)) if source.is_dir() else inside)
    parts, groups = [], []
    with archive.open("rb") as whole:
        while data := whole.read(part_bytes):
            group = out / str(len(parts) // most + 1)
            group.mkdir(exist_ok=True)
            part = group / f"{name}.{len(parts):03d}"
            part.write_bytes(data)
            parts.append({"file": part.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            groups += [group] if group not in groups else []
    manifest = {"name": name, "sha256": sha256(archive), "parts": parts}
    archive.unlink()
    for group in groups:
        (group / f"{name}{MANIFEST}").write_text(json.dumps(manifest, indent=1) + "\n")
    return groups


def join(folders: list[Path], into: Path) -> list[str]:
    """Take the parts that are in `folders`; once all parts of a name are there, unpack it to `into`/NAME.

    Returns a line on each name: joined, or what is still to come. A part with another sum is refused (ValueError) and
    nothing of it is kept. The same call again changes nothing.
    """
    kept = into / ".parts"
    kept.mkdir(parents=True, exist_ok=True)
    said = []
    for path in sorted({p.name: p for folder in folders for p in folder.glob(f"*{MANIFEST}")}.values()):
        manifest = json.loads(path.read_text())
        name, done = manifest["name"], into / f".{manifest['name']}.sha256"
        if done.is_file() and done.read_text() == manifest["sha256"]:
            said.append(f"{name}: was joined before")
            continue
        for part in manifest["parts"]:
            for found in (folder / part["file"] for folder in folders):
                if found.is_file():
                    if sha256(found) != part["sha256"]:
                        raise ValueError(f"{found}: does not have the SHA-256 of the manifest; send it again")
                    _copy(found, kept / part["file"])
        missing = [p["file"] for p in manifest["parts"] if not _is_kept(kept, p)]
        if missing:
            said.append(f"{name}: still to come: {' '.join(missing)}")
            continue
        _unpack(manifest, kept, into / name)
        done.write_text(manifest["sha256"])
        for part in manifest["parts"]:
            (kept / part["file"]).unlink()
        said.append(f"{name}: joined, {sum(p['bytes'] for p in manifest['parts'])} bytes, {manifest['sha256'][:12]}")
    return said


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_kept(kept: Path, part: dict) -> bool:
    return (kept / part["file"]).is_file() and sha256(kept / part["file"]) == part["sha256"]


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.partial")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _unpack(manifest: dict, kept: Path, folder: Path) -> None:
    """Unpack beside `folder`, then put it in its place: files that are not in the archive stay."""
    archive, fresh = kept / f"{manifest['name']}.zip", kept / f"{manifest['name']}.unpacked"
    with archive.open("wb") as whole:
        for part in manifest["parts"]:
            whole.write((kept / part["file"]).read_bytes())
    assert sha256(archive) == manifest["sha256"]
    shutil.rmtree(fresh, ignore_errors=True)
    with zipfile.ZipFile(archive) as file:
        file.extractall(fresh)
    shutil.copytree(fresh, folder, dirs_exist_ok=True)
    shutil.rmtree(fresh)
    archive.unlink()
