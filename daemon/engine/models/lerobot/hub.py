"""Files that a policy looks up on the Hugging Face hub: which were missing, and how to provide them without a network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....packages.lerobot_checkpoint import LerobotCheckpoint

#: Exceptions of the libraries below LeRobot for a file that is neither in the cache nor to be downloaded.
_TYPES = {
    "ConnectionError",
    "ConnectTimeout",
    "GatedRepoError",
    "HfHubHTTPError",
    "LocalEntryNotFoundError",
    "MaxRetryError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "RepositoryNotFoundError",
    "URLError",
}
_TEXTS = ("couldn't connect to", "offline mode", "can't load tokenizer for", "is not a local folder")
_KEYS = ("_name", "_model_name", "_name_or_path", "_path", "model_id", "repo_id")


def missing_files(error: BaseException, checkpoint: LerobotCheckpoint) -> str | None:
    """Return the text of an error that a missing file of the hub caused, None for another error."""
    if not any(_is_of_hub(each) for each in _chain(error)):
        return None
    names = sorted(set(_hub_names(checkpoint)))
    cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
    commands = "; ".join(f"hf download {name}" for name in names) or "load the checkpoint with LeRobot"
    named = f" ({', '.join(names)})" if names else ""
    return (
        f"the {checkpoint.type} policy needs files of the hub beside its own weights{named}, which are not in the cache (HF_HOME is {cache}). On a machine with a "
        f"network: {commands}. Then copy that cache to where this service may read it, and set HF_HOME and HF_HUB_OFFLINE=1 "
        f"for the daemon (docs/how-to/lerobot.md, Without a network). The cause: {str(error)[:300]}"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_hub(error: BaseException) -> bool:
    if any(each.__name__ in _TYPES for each in type(error).__mro__):
        return True
    return isinstance(error, (OSError, ValueError)) and any(text in str(error).lower() for text in _TEXTS)


def _hub_names(checkpoint: LerobotCheckpoint) -> Iterator[str]:
    """Find names of repositories (owner/name) in the settings of the policy and of its processors."""
    tables: list[Any] = [checkpoint.config, checkpoint.adapter or {}]
    tables += [step.get("config") for step in (*checkpoint.preprocessor, *checkpoint.postprocessor)]
    for table in tables:
        for key, value in table.items() if isinstance(table, dict) else ():
            if isinstance(value, str) and value.count("/") == 1 and key.endswith(_KEYS) and not Path(value).exists():
                yield value
