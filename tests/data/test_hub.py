"""Data sets of the hub: read through its library from its cache or from a folder; what is missing offline is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter
from ruamel.yaml import YAML

from uplift.core.errors import DataError, ResourceError, UsageError
from uplift.core.source_section import AnySource, HubSource
from uplift.data.packages import named_source
from uplift.data.sources import read_source
from uplift.verbs.inspect import inspect

datasets = pytest.importorskip("datasets")
ROWS = [{"text": f"row {index}", "label": index % 2} for index in range(3000)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def folder(at: Path) -> Path:
    at.mkdir()
    for split, rows in (("train", ROWS), ("test", ROWS[:5])):
        datasets.Dataset.from_list(rows).to_parquet(at / f"{split}.parquet")
    return at


def test_a_folder_is_read_split_by_split(tmp_path: Path) -> None:
    folder(tmp_path / "set")
    found = read_source(HubSource(id="set"), tmp_path)
    assert [dict(row.values) for row in found.rows] == ROWS and found.format == "hub"
    assert [row.origin.line for row in found.rows[:3]] == [1, 2, 3] and found.rows[0].origin.file == "set"
    assert len(found.sha256) == 64
    test = read_source(HubSource(id="set", split="test"), tmp_path)
    assert [dict(row.values) for row in test.rows] == ROWS[:5] and test.sha256 != found.sha256
    part = read_source(HubSource(id="set", split="train[10:20]", where={"label": 1}, limit=3), tmp_path)
    assert [row.values["text"] for row in part.rows] == ["row 11", "row 13", "row 15"]


def test_a_data_set_in_the_cache_is_read_offline(tmp_path: Path, cache: Path) -> None:
    made = folder(tmp_path / "set")
    whole = datasets.load_dataset(str(made), cache_dir=str(cache))
    # As the library keeps a data set of the hub: user___name/configuration/version/hash.
    kept = Path(whole["train"].cache_files[0]["filename"]).parent
    home = cache / "user___films" / "default" / "0.0.0" / "0123456789abcdef"
    home.parent.mkdir(parents=True)
    kept.rename(home)
    for file in home.glob("*.arrow"):
        file.rename(home / file.name.replace(kept.parents[2].name, "films"))
    for source in (HubSource(id="user/films", split="test"), named_source("hub:user/films:test")):
        assert [dict(row.values) for row in read_source(source, tmp_path).rows] == ROWS[:5]


def test_one_word_names_a_set_of_the_hub(tmp_path: Path) -> None:
    assert named_source("hub:user/films") == HubSource(id="user/films")
    assert named_source("hub:user/films:train[:10%]") == HubSource(id="user/films", split="train[:10%]")
    folder(tmp_path / "set")
    looked = inspect(f"hub:{tmp_path / 'set'}", parts={"test": f"hub:{tmp_path / 'set'}:test"}, limit=50)
    assert looked.overview.rows == 55
    written = YAML(typ="safe").load(looked.recipe)["data"]
    assert TypeAdapter(AnySource).validate_python(written["test"]) == HubSource(id=str(tmp_path / "set"), split="test")
    for nothing in ("hub:", ""):
        with pytest.raises(UsageError, match="names no data"):
            named_source(nothing)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="user/films: the data set is not on this machine, and the hub cannot be reached"):
        read_source(HubSource(id="user/films"), tmp_path)
    folder(tmp_path / "set")
    with pytest.raises(DataError, match="set: the data set cannot be read") as caught:
        read_source(HubSource(id="set", split="dev"), tmp_path)
    assert "dev" in caught.value.why and "train" in caught.value.why
    with pytest.raises(DataError, match="there is no row"):
        read_source(HubSource(id="set", where={"label": 7}), tmp_path)


def test_code_of_a_data_set_is_never_run(tmp_path: Path) -> None:
    script = tmp_path / "set"
    script.mkdir()
    (script / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError):
        read_source(HubSource(id="set"), tmp_path)
    assert not (tmp_path / "ran").exists()
