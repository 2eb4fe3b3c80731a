"""Version that a daemon serves first: the operator's choice, or the version served last.

A changed --model-path or device counts as a new choice. An unchanged one does not undo an update that was made since.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from shmserve.errors import ModelPackageError
from shmserve.package_files import content_digest, package_bytes, package_files
from shmserve.package_signature import PublicKey

from ..config.config import Config, ConfigError
from ..packages.package import ModelPackage
from ..store.atomic_files import write_json
from ..store.errors import DowngradeRefused
from ..store.ingest_progress import IngestProgress
from ..store.limits import PackageLimits
from ..store.signature_policy import SignaturePolicy
from ..store.store import Store
from ..store.stored_version import StoredVersion
from ..supervisor import Deployment

log = logging.getLogger(__name__)


def open_store(config: Config, *, in_use: Callable[[], Collection[str]]) -> Store:
    """Return the service's store, not yet opened; versions that are `in_use` stay in it."""

    def examine(path: Path) -> int:
        return ModelPackage.read(path, allow_code=config.allow_code).release

    return Store(
        config.state_dir / config.name / "models",
        keep_versions=config.keep_versions,
        limits=PackageLimits(total_bytes=config.max_package_bytes),
        signatures=SignaturePolicy(config.require_signature, [PublicKey.read(key) for key in config.signature_keys]),
        examine=examine,
        in_use=in_use,
    )


@dataclass(frozen=True)
class OperatorChoice:
    """The operator's settings when the daemon last served."""

    digest: str | None = None  # of the package at --model-path
    device: str | None = None

    @classmethod
    def read(cls, file: Path) -> OperatorChoice:
        try:
            document = json.loads(file.read_bytes())
            return cls(document["digest"], document["device"])
        except (OSError, ValueError, KeyError, TypeError):
            return cls()


@dataclass(frozen=True)
class StartupVersion:
    """The first deployment; `remember` it once it serves."""

    deployment: Deployment
    _store: Store
    _choice: OperatorChoice
    _choice_file: Path

    def remember(self) -> None:
        """Record it for the next start; a state directory that cannot be written is logged only."""
        try:
            self._store.make_current(
                self.deployment.version, device=self.deployment.device, rolled_back=None, refused=None
            )
            if self._choice != OperatorChoice.read(self._choice_file):
                write_json(self._choice_file, asdict(self._choice), steps="given")
        except OSError as error:
            log.error("a restart may begin with another version than %s: %s", self.deployment.version, error)


async def choose_startup_version(config: Config, store: Store, ingest: IngestProgress) -> StartupVersion:
    """Return the version to serve first.

    The package at --model-path, if it has changed since the daemon last served; otherwise the version that was served
    last, perhaps after an update. Raises ModelPackageError.
    """
    # In a file for the service, not for one version: the chosen version is removed some day, after updates.
    file = config.state_dir / config.name / "given"
    before = OperatorChoice.read(file)

    def first(stored: StoredVersion, digest: str | None) -> StartupVersion:
        device = stored.metadata.get("device") if config.device == before.device else None
        deployment = Deployment(stored.path, stored.version, str(device or config.device), Path(stored.source).name)
        return StartupVersion(deployment, store, OperatorChoice(digest, config.device), file)

    if config.model_path is None:
        stored = await store.last_good(ingest.of_check)
        if stored is None:
            raise ConfigError(
                f"no model was served before in {store.directory}: give --model-path DIR, or model_path in the "
                "configuration file"
            )
        log.info("no --model-path: version %s of %s is served, which was served last", stored.version, store.directory)
        return first(stored, before.digest)
    if before.digest is not None:  # without one there is nothing to compare, and one pass over the files is enough
        digest = await _digest(config.model_path, ingest)
        if digest == before.digest:
            stored = await store.last_good(ingest.of_check)
            if stored is not None:
                if stored.digest != digest:
                    log.info("--model-path is unchanged; version %s was served since", stored.version)
                return first(stored, digest)
    descriptor = os.open(config.model_path, os.O_RDONLY | os.O_DIRECTORY)
    source = str(config.model_path)
    try:
        with ingest.of(source, "receive") as report:
            stored = await store.add(
                descriptor,
                source,
                uid=os.getuid(),
                note="--model-path",
                progress=lambda received: report(received.read_bytes, received.total_bytes),
            )
    except DowngradeRefused as error:
        raise DowngradeRefused(
            f"{config.model_path}: {error}, once the daemon runs: without --model-path it serves what it served last"
        ) from error
    finally:
        os.close(descriptor)
    return first(stored, stored.digest)


async def _digest(path: Path, ingest: IngestProgress) -> str:
    """Return the content address of the package at `path`, read in a thread."""
    total = await asyncio.to_thread(package_bytes, path)
    with ingest.of(str(path), "compare", total) as report:
        done, is_cancelled = 0, False

        def count(read: int) -> None:
            nonlocal done
            done += read
            if is_cancelled:  # a thread cannot be ended from outside
                raise ModelPackageError("the service was stopped while it read the package")
            report(done, total)

        try:
            return content_digest(await asyncio.to_thread(package_files, path, read=count))
        except asyncio.CancelledError:
            is_cancelled = True
            raise
