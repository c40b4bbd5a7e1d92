"""Records, names and states of containers, from files alone."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shim.byhand import registry
from shim.cli import status
from shim.errors import AlreadyExists, NotFound


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own."""
    monkeypatch.setenv("HAKO_STATE_DIR", str(tmp_path))
    return tmp_path


def _saved(name: str = "") -> registry.Container:
    container = registry.new(name)
    registry.save(container)
    return container


def test_a_record_comes_back_whole() -> None:
    """What `hako run` wrote is what every other command reads."""
    container = registry.new("web")
    container.image, container.command, container.remove = "busybox", ["sh", "-c", "true"], True
    registry.save(container)
    assert registry.find("web").as_dict() == container.as_dict()


def test_containers_are_found_by_name_id_and_beginning() -> None:
    """A name, a whole id or the unique beginning of an id."""
    container = _saved("web")
    for reference in ("web", container.id, container.id[:4]):
        assert registry.find(reference).id == container.id


@pytest.mark.parametrize("reference", ["", "none", "..", "../names/web", "we", "/etc"])
def test_what_is_not_there_is_not_found(reference: str) -> None:
    """Other words, paths among them, name nothing; a name is not matched by its beginning."""
    _saved("web")
    with pytest.raises(NotFound):
        registry.find(reference)


def test_a_name_has_one_holder() -> None:
    """A name in use is refused with its holder, and nothing is left of the second container."""
    first = _saved("web")
    with pytest.raises(AlreadyExists, match=f"in use by container {first.id}"):
        registry.new("web")
    assert os.listdir(registry.containers_root()) == [first.id]


def test_a_name_whose_container_is_gone_is_free() -> None:
    """A link that points nowhere, left by a crash, does not keep the name."""
    os.makedirs(registry.names_root())
    os.symlink("0123456789ab", os.path.join(registry.names_root(), "web"))
    assert registry.new("web").name == "web"


def test_forgetting_frees_name_and_directory() -> None:
    """After it the same name can be used again."""
    container = _saved("web")
    registry.forget(container)
    assert not os.path.exists(container.directory)
    assert registry.new("web").id != container.id


def test_an_unfinished_directory_is_no_container() -> None:
    """One without a record goes with the next container that is made; half a record lists nothing."""
    empty = Path(registry.containers_root(), "0123456789ab")
    empty.mkdir(parents=True)
    Path(registry.new("").file(registry.RECORD)).write_text('{"id": "x')
    assert registry.all() == [] and not empty.exists()


def test_a_container_is_there_from_its_first_moment() -> None:
    """Whoever is killed while making it leaves something that can be listed, found by its name and removed."""
    container, lock = registry.begin("web")
    assert status.of(registry.find("web")).status == status.STARTING
    os.close(lock)
    assert status.of(registry.find("web")).status == status.DEAD
    registry.forget(container)
    assert os.listdir(registry.names_root()) == os.listdir(registry.containers_root()) == []


def test_one_of_many_gets_a_name() -> None:
    """Twenty at once want a name that a crash has left behind: one gets it, nothing is left of the others."""
    os.makedirs(registry.names_root())
    os.symlink("0123456789ab", os.path.join(registry.names_root(), "web"))

    def claim(_number: int) -> str:
        try:
            return registry.new("web").id
        except AlreadyExists:
            return ""

    with ThreadPoolExecutor(20) as pool:
        got = [container_id for container_id in pool.map(claim, range(20)) if container_id]
    assert got == os.listdir(registry.containers_root()) == [registry.find("web").id]


def test_states_from_files() -> None:
    """exit.json says exited; a process that is gone without one leaves a dead container; a lock: starting."""
    container = _saved()
    assert status.of(container).status == status.DEAD
    assert status.has_ended(container)
    lock = registry.lock(container)
    assert status.of(container).status == status.STARTING
    assert not status.has_ended(container)
    os.close(lock)
    registry.write_json(container.file(registry.EXIT), {"exit_status": 3, "exited_at": 5.0})
    state = status.of(container)
    assert (state.text, state.finished, status.has_ended(container)) == ("exited (3)", 5.0, True)
