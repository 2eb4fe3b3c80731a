"""`import shmserve` names the whole client, and loads it with the first use of a name."""

from __future__ import annotations

import pytest

import shmserve
import shmserve.client


def test_the_package_has_the_names_of_its_client_and_its_version() -> None:
    assert sorted(shmserve.__all__) == sorted([*shmserve.client.__all__, "__version__"])
    assert set(shmserve.__all__) <= set(dir(shmserve))


@pytest.mark.parametrize("name", shmserve.client.__all__)
def test_a_name_of_the_package_is_that_of_the_client(name: str) -> None:
    assert getattr(shmserve, name) is getattr(shmserve.client, name)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'shmserve' has no attribute 'Shmclient'"):
        shmserve.Shmclient  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from shmserve import Shmclient  # type: ignore[attr-defined]  # noqa: F401
