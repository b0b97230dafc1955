"""Whether to upload: the recipe, the environment, and whether the user is logged in."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse

PUBLIC_HOST = "api.wandb.ai"


def resolve_mode(asked: str, base_url: str) -> tuple[str, str]:
    """Return ``online``, ``offline`` or ``disabled``, and for people why it is not online.

    Args:
        asked: the recipe's ``auto``, ``online`` or ``offline``.
        base_url: of the W&B server.
    """
    environment = os.environ.get("WANDB_MODE", "")
    if environment in ("offline", "dryrun"):
        return "offline", "WANDB_MODE is offline"
    if environment == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "disabled", "WANDB_MODE is disabled"
    if asked == "offline":
        return "offline", "the recipe says so"
    if not logged_in(base_url):
        return "offline", "not logged in"
    return "online", ""


def logged_in(base_url: str) -> bool:
    """Return whether there is a key for a server, in the environment or in ``~/.netrc``; asks nobody."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    hosts = {urlparse(base_url).hostname or "", PUBLIC_HOST}
    given = os.environ.get("NETRC")
    for file in [Path(given)] if given else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            known = netrc.netrc(file)
        except (OSError, netrc.NetrcParseError):
            continue
        if hosts & set(known.hosts):
            return True
    return False
