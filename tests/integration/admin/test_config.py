"""Flags over the environment over the file over the defaults; mistakes are refused with what to do; reload."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmserve.daemon.config.config import SETTINGS, Config, ConfigError
from shmserve.daemon.config.sources import Settings, read_config_file
from tests.support.daemon_process import SHMSERVED, Daemon, environment
from tests.support.folders import REPOSITORY
from tests.support.own_mounts import needs_mounts, seeing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DIRECTORIES = {"runtime_dir": Path("/r"), "state_dir": Path("/s")}
DEFAULTS = Config(runtime_dir=Path("/r"), state_dir=Path("/s"))
#: Of each key whose default TOML has no word for, a value.
_WITHOUT_DEFAULT = {
    "group_clients": "true",
    "register_bytes": "8388608",
    "threads": "2",
    "engine_memory_bytes": "1073741824",
    "allow_uids": "[1]",
    "allow_gids": "[1]",
    "admin_uids": "[1]",
    "max_shared_bytes": "1073741824",
    "max_clients_per_user": "2",
    "max_bytes_per_user": "1073741824",
    "max_rate_per_user": "2.5",
    "max_attach_rate_per_user": "2.5",
}
DOCUMENT = REPOSITORY / "docs/reference/configuration.md"


def settings(
    file: str | None = None,
    folder: Path | None = None,
    flags: dict[str, Any] | None = None,
    variables: dict[str, str] | None = None,
) -> Settings:
    path = None
    if file is not None:
        assert folder is not None
        path = folder / "t.toml"
        path.write_text(file)
    return Settings("t", DIRECTORIES, flags=flags or {}, environment=variables or {}, file=path)


def refusal(found: Settings) -> str:
    with pytest.raises(ConfigError) as error:
        found.read()
    return str(error.value)


# Layers


def test_flags_win_over_the_environment_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    found = settings(
        "device = 'cuda:1'\nmax_clients = 3\nmax_slots = 4\n",
        tmp_path,
        {"device": "cuda:2", "threads": None},
        {"SHMSERVE_DEVICE": "cuda:3", "SHMSERVE_MAX_CLIENTS": "5"},
    )

    config = found.read()

    assert (config.device, config.max_clients, config.max_slots, config.threads) == ("cuda:2", 5, 4, None)
    origins = {key: found.effective[key].origin for key in ("device", "max_clients", "max_slots", "threads")}
    assert origins == {
        "device": "flag --device",
        "max_clients": "environment SHMSERVE_MAX_CLIENTS",
        "max_slots": f"file {tmp_path}/t.toml",
        "threads": "default",
    }


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("allow_code", "false", False),
        ("group_clients", "YES", True),
        ("drain_s", "2.5", 2.5),
        ("spin_us", "adaptive", "adaptive"),
        ("spin_us", "20", 20),
        ("trusted_uids", "1000, 1001", (1000, 1001)),
        ("trusted_uids", "", ()),
        ("signature_keys", "/a,/b", ("/a", "/b")),
        ("model_path", "/srv/m", Path("/srv/m")),
        ("log_level", "DEBUG", "debug"),
    ],
)
def test_a_variable_is_read_as_its_key_s_type(key: str, text: str, value: object) -> None:
    config = settings(variables={f"SHMSERVE_{key.upper()}": text}).read()

    assert getattr(config, key) == value


def test_every_key_can_be_in_the_file(tmp_path: Path) -> None:
    for key in SETTINGS:
        value = getattr(DEFAULTS, key)
        text = {"model_path": '"/m"', "trusted_uids": "[1]", "signature_keys": '["/k"]'}.get(key)
        if text is None:
            text = _WITHOUT_DEFAULT.get(key) or (json.dumps(value))
        # A key that the next one needs is given with it.
        extra = 'signature_keys = ["/k"]\n' if key == "require_signature" else ""

        assert key in {**settings(f"{key} = {text}\n{extra}", tmp_path).read().__dict__}
        assert read_config_file(tmp_path / "t.toml")[key] is not None


@needs_mounts
def test_the_user_s_own_file_comes_before_the_system_s_which_is_all_that_root_has(tmp_path: Path) -> None:
    system, own = tmp_path / "etc" / "shmserve" / "t.toml", tmp_path / "own" / "shmserve" / "t.toml"
    for file, clients in ((system, 2), (own, 3)):
        file.parent.mkdir(parents=True)
        file.write_text(f"max_clients = {clients}\n")

    def found(uid: int | None) -> str:
        command: list[str | Path] = [SHMSERVED, "--name", "t", "--runtime-dir", tmp_path / "r", "--check-config"]
        told = subprocess.run(
            seeing({"/etc": tmp_path / "etc"}, command, beside=True, uid=uid),
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment(), "XDG_CONFIG_HOME": str(tmp_path / "own")},
            check=True,
        )
        (line,) = (line for line in str(told.stdout).splitlines() if line.startswith("max_clients ="))
        return line

    assert found(uid=1000) == f"max_clients = 3  # file {own}"
    assert found(uid=None) == "max_clients = 2  # file /etc/shmserve/t.toml"
    own.unlink()
    assert found(uid=1000) == "max_clients = 2  # file /etc/shmserve/t.toml"


# Mistakes


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    said = refusal(settings("max_clinets = 3\n", tmp_path))

    assert said == f"configuration {tmp_path}/t.toml: unknown key 'max_clinets'; did you mean 'max_clients'?"


def test_a_key_that_is_near_no_other_is_refused_with_all_that_are_known(tmp_path: Path) -> None:
    assert "known are admin_uids, allow_code" in refusal(settings("zzzz = 3\n", tmp_path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("max_clients = 0", "max_clients = 0 must be 1 to 256"),
        ("max_clients = 257", "max_clients = 257 must be 1 to 256"),
        ("max_clients = true", "max_clients = true must be integer"),
        ('max_clients = "8"', 'max_clients = "8" must be integer'),
        ("drain_s = nan", "drain_s = nan must be 0 to 3600"),
        ("drain_s = -1", "drain_s = -1 must be 0 to 3600"),
        ("heartbeat_timeout_s = inf", "heartbeat_timeout_s = inf must be 0 to 86400"),
        ("keep_versions = 2", "keep_versions = 2 must be 3 to 10000"),
        ("probation_failures = 1.5", "probation_failures = 1.5 must be 0 to 1"),
        ('spin_us = "fast"', 'spin_us = "fast" must be 0 to 1000000 microseconds, or "adaptive"'),
        ("spin_us = -1", "spin_us = -1 must be 0 to 1e+06"),
        ("engine_priority = 100", "engine_priority = 100 must be 0 to 99"),
        ("engine_priority = true", "engine_priority = true must be integer"),
        ("lock_memory = 1", "lock_memory = 1 must be true or false"),
        ('transport = "tcp"', 'transport = "tcp" must be "named" or "sealed"'),
        ('device = "gpu"', 'device = "gpu" must be "cpu", "cuda", or "cuda:0"'),
        ('device = "cuda:-1"', 'device = "cuda:-1" must be "cpu"'),
        ('log_level = "loud"', 'log_level = "loud" must be one of "debug", "info", "warning", "error"'),
        ("trusted_uids = [1.5]", "trusted_uids = [1.5] must be a list of integers"),
        ('standby = "hot"', 'standby = "hot" must be "previous" or "loaded"'),
        ('preload = ["torchvison"]', 'preload = ["torchvison"]: there is no module torchvison beside'),
        ('preload = ["json", "json;os"]', 'preload = ["json;os"]: this is not the name of a Python module'),
        ('preload = "json"', 'preload = "json" must be list of texts'),
        ("require_signature = true", "require_signature = true needs signature_keys"),
    ],
)
def test_an_invalid_value_is_refused_with_the_valid_ones(tmp_path: Path, line: str, said: str) -> None:
    refused = refusal(settings(line + "\n", tmp_path))

    assert said in refused and f"{tmp_path}/t.toml" in refused


def test_a_variable_that_cannot_be_is_refused_by_its_name() -> None:
    assert (
        refusal(settings(variables={"SHMSERVE_MAX_CLIENTS": "many"}))
        == "environment SHMSERVE_MAX_CLIENTS='many' must be integer"
    )


def test_an_unknown_variable_is_reported_with_the_nearest_setting() -> None:
    found = settings(variables={"SHMSERVE_MAX_CLINETS": "3", "SHMSERVE_RUNTIME_DIR": "/r", "SHMSERVE_DEVICE": "cpu"})

    assert found.unknown_variables() == ["SHMSERVE_MAX_CLINETS: no such setting; did you mean 'max_clients'?"]


def test_the_choice_of_the_backend_is_not_reported_as_an_unknown_setting() -> None:
    assert settings(variables={"SHMSERVE_PURE": "1"}).unknown_variables() == []


def test_an_absent_file_is_refused_if_the_operator_named_it(tmp_path: Path) -> None:
    found = Settings("t", DIRECTORIES, flags={}, environment={}, file=tmp_path / "gone.toml")

    assert "gone.toml cannot be read: No such file" in refusal(found)


def test_invalid_toml_is_refused(tmp_path: Path) -> None:
    assert "is not TOML" in refusal(settings("max_clients: 3\n", tmp_path))


def test_check_config_prints_the_effective_settings_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "good.toml").write_text("max_clients = 3\n")
    (tmp_path / "bad.toml").write_text("max_clinets = 3\n")

    def check(file: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [
            SHMSERVED,
            "--check-config",
            "--runtime-dir",
            tmp_path / "r",
            "--config",
            tmp_path / file,
        ]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**environment(), "HOME": "/"}, check=False
        )

    good, bad = check("good.toml"), check("bad.toml")

    assert good.returncode == 0
    assert f"max_clients = 3  # file {tmp_path}/good.toml" in good.stdout.splitlines()
    assert "# trusted_uids is not set" in good.stdout.splitlines()
    printed = tomllib.loads(good.stdout)
    assert (printed["transport"], printed["allow_code"], printed["signature_keys"]) == ("named", True, [])
    assert (bad.returncode, "did you mean 'max_clients'" in bad.stderr) == (78, True)
    assert not (tmp_path / "r").exists()


# Reload


@pytest.fixture(scope="module")
def own() -> Iterator[Daemon]:
    with Daemon("echo", config="max_slots = 4\nmax_clients = 8\n") as daemon:
        yield daemon


@pytest.fixture
def daemon(own: Daemon) -> Iterator[Daemon]:
    """A daemon whose file a test may change."""
    file = own.folder / "config.toml"
    before = file.read_text()
    yield own
    file.write_text(before)
    own.admin("Reload")


def test_a_reload_applies_live_settings_and_reports_the_others(daemon: Daemon) -> None:
    (daemon.folder / "config.toml").write_text('max_slots = 2\nmax_clients = 9\nlog_level = "debug"\n')

    told = daemon.admin("Reload")

    assert told == {"applied": {"max_slots": 2, "log_level": "debug"}, "needs_restart": {"max_clients": 9}}
    with daemon.client(slots=8) as client:
        client.infer({"a": 1})
        (attached,) = (lease["slots"] for lease in daemon.status()["clients"])
        pending = [client.submit({"a": number}) for number in range(2)]
        assert [one.result() for one in pending] == [{"a": 0}, {"a": 1}]
    assert attached == 8, "what it asked for; it got two"
    in_force = {setting["key"]: setting for setting in daemon.admin("Config")["settings"]}
    assert (in_force["max_slots"]["value"], in_force["max_slots"]["reloadable"]) == (2, True)
    assert (in_force["max_clients"]["value"], in_force["max_clients"]["waiting"]) == (8, 9)
    assert in_force["max_clients"]["origin"] == f"file {daemon.folder}/config.toml"
    assert daemon.admin("Reload") == {"applied": {}, "needs_restart": {"max_clients": 9}}


def test_a_reload_of_a_file_with_a_mistake_changes_nothing(daemon: Daemon) -> None:
    (daemon.folder / "config.toml").write_text("max_slots = 2\nmax_clinets = 9\n")
    admin: list[str | Path] = [
        SHMSERVED.with_name("shmserve-admin"),
        "--name",
        daemon.name,
        "--runtime-dir",
        daemon.runtime_dir,
    ]

    result = subprocess.run([*admin, "reload"], capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 1
    assert "did you mean 'max_clients'" in result.stderr
    shown = subprocess.run([*admin, "config"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.search(rf"^max_slots +4 +file {daemon.folder}/config.toml +live *$", shown, re.MULTILINE)
    assert re.search(rf"^max_clients +8 +file {daemon.folder}/config.toml *$", shown, re.MULTILINE)
    assert re.search(r'^log_level +"info" +default +live *$', shown, re.MULTILINE)


# The page


def test_the_page_tells_every_key_with_its_type_its_default_and_whether_it_is_live() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|([^|]*)\| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE)

    told = {
        key: (kind.strip(), default.strip(), reloadable.strip() == "reloadable")
        for key, kind, default, reloadable, _ in rows
    }
    is_so = {
        key: (setting.kind.words, _default(getattr(DEFAULTS, key)), setting.reloadable)
        for key, setting in SETTINGS.items()
    }
    assert told == is_so
    assert all(len(text) > 20 for *_, text in rows)


def _default(value: object) -> str:
    if value is None:
        return "none"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"
