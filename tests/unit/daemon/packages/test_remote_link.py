"""The manifest of a link: what [remote] may say, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from shmserve.daemon.packages.package import ModelPackage
from shmserve.errors import ModelPackageError

_MODEL = '[model]\nformat = "remote"\n'
_REMOTE = '[remote]\ntarget = "unix:///run/x.sock"\napplication = "arm"\nversion = "3f9c2d17a0b14e55"\n'


def written(directory: Path, text: str) -> Path:
    (directory / "model.toml").write_text(text)
    return directory


def with_fallback(directory: Path, manifest: str = "") -> Path:
    inside = directory / "local"
    inside.mkdir()
    (inside / "policy.py").write_text("class Policy: ...")
    if manifest:
        (inside / "model.toml").write_text(manifest)
    return written(directory, _MODEL + _REMOTE + 'fallback = "local/"\n')


def test_a_link_says_where_the_model_is(tmp_path: Path) -> None:
    link = ModelPackage.read(written(tmp_path, _MODEL + _REMOTE + "budget_s = 1\n"), allow_code=False).link

    assert link is not None
    assert (link.target, link.application, link.version) == ("unix:///run/x.sock", "arm", "3f9c2d17a0b14e55")
    assert (link.budget_s, link.fallback, link.recover_after) == (1.0, None, 3)


def test_a_fallback_is_part_of_the_version_and_read_by_its_own_rules(tmp_path: Path) -> None:
    package = ModelPackage.read(with_fallback(tmp_path))
    before = ModelPackage.read(tmp_path).version
    fallback = package.read_fallback()

    assert fallback is not None and fallback.format == "python"
    (tmp_path / "local" / "policy.py").write_text("class Policy: pass")
    assert ModelPackage.read(tmp_path).version != before


def test_a_fallback_with_code_needs_allow_code(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="local: format 'python' can run code"):
        ModelPackage.read(with_fallback(tmp_path), allow_code=False)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("[model]\nstateful = true\n", "a fallback cannot be stateful"),
        (_MODEL + _REMOTE, "cannot be a link itself"),
    ],
    ids=["stateful", "link"],
)
def test_a_fallback_that_cannot_be_one_is_refused(tmp_path: Path, manifest: str, said: str) -> None:
    with pytest.raises(ModelPackageError, match=said):
        ModelPackage.read(with_fallback(tmp_path, manifest))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_MODEL, "needs \\[remote\\] with target, application, version"),
        ('[model]\nentry = "policy:Policy"\n' + _REMOTE, "\\[remote\\] is for format 'remote'; this is 'python'"),
        (_MODEL + _REMOTE.replace('application = "arm"\n', ""), "needs application"),
        (_MODEL + _REMOTE.replace("unix:///run/x.sock", "dns:///gpu:9000"), "an engine has no network, so a proxy"),
        (_MODEL + _REMOTE + 'ca = "ca.pem"\n', "certificates belong to the proxy"),
        (_MODEL + _REMOTE.replace("3f9c2d17a0b14e55", "v7"), "16 hex digits"),
        (_MODEL + _REMOTE + "budget_s = 60\n", "budget_s = 60.0 must be 0.001 to 10"),
        (_MODEL + _REMOTE + "budget_s = nan\n", "budget_s = nan"),
        (_MODEL + _REMOTE + "recover_after = 0\n", "recover_after = 0 must be 1 to 100"),
        (_MODEL + _REMOTE + "recover_after = true\n", "must be an integer"),
        (_MODEL + _REMOTE + 'fallback = "../other"\n', "must be a directory in the package"),
        (_MODEL + _REMOTE + 'fallback = "local"\n', "holds no such directory"),
        (_MODEL + _REMOTE + "speed = 1\n", "'speed' is not a key of \\[remote\\]"),
        (_MODEL + "stateful = true\n" + _REMOTE, "a link cannot be stateful"),
        (_MODEL + "cuda_graph = true\n" + _REMOTE, "cuda_graph: not for a link"),
        (_MODEL + "real_time_chunking = true\n" + _REMOTE, "not for"),
    ],
)
def test_what_a_link_cannot_say_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ModelPackageError, match=said):
        ModelPackage.read(written(tmp_path, text))
