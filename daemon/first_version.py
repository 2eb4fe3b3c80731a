"""Which version a daemon begins with: the one it was given, or the one that was served last."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from shmserve.errors import ModelPackageError
from shmserve.package_files import content_digest, package_files
from shmserve.package_signature import PublicKey

from .config import Config
from .engines import Served
from .model_package import ModelPackage
from .store.limits import Limits
from .store.stored_version import StoredVersion
from .store.versions import Store, Trust

#: The fact that marks the version that --model-path stood for when it was last taken in.
_GIVEN = "given"


def open_store(config: Config) -> Store:
    """The service's store, not yet opened."""

    def examine(path: Path) -> None:
        ModelPackage.read(path, allow_code=config.allow_code)

    return Store(
        config.state_dir / config.name / "models",
        keep_versions=config.keep_versions,
        limits=Limits(total_bytes=config.max_package_bytes),
        trust=Trust(config.require_signature, [PublicKey.read(key) for key in config.signature_keys]),
        examine=examine,
    )


async def first_version(config: Config, store: Store) -> Served:
    """The version to begin with.

    What --model-path holds, if that is not what it held when it was last taken in; else the version
    that was served last, which an update may have brought since. Raises ModelPackageError.
    """
    if config.model_path is None:
        stored = await store.last_good()
        if stored is None:
            raise ModelPackageError(
                f"no model was served before in {store.directory}: give --model-path DIR, or model_path in the "
                "configuration file"
            )
        return _served(stored, config)
    digest = content_digest(await asyncio.to_thread(package_files, config.model_path))
    given = next((stored for stored in store.versions() if stored.facts.get(_GIVEN)), None)
    if given is not None and given.digest == digest:
        stored = await store.last_good()
        if stored is not None:
            return _served(stored, config)
    descriptor = os.open(config.model_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        stored = await store.add(descriptor, str(config.model_path), uid=os.getuid(), note="--model-path")
    finally:
        os.close(descriptor)
    return _served(stored, config)


def _served(stored: StoredVersion, config: Config) -> Served:
    # An update may have moved it to another device; --device names the first one.
    return Served(
        stored.path, stored.version, str(stored.facts.get("device") or config.device), Path(stored.source).name
    )


def make_first_current(store: Store, served: Served, config: Config) -> None:
    """The first version serves: a restart begins with it."""
    stored = store.resolve(served.version)
    store.make_current(stored)
    if config.model_path is None:
        return
    for other in store.versions():
        if other.facts.get(_GIVEN) and other.digest != stored.digest:
            store.record(other, **{_GIVEN: None})
    store.record(stored, **{_GIVEN: True})
