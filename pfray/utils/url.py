"""Checks of cluster addresses and storage URLs, which are written into files and so must hold no secrets."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

# Environment variables by which Ray finds a cluster's token.
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# Schemes with a user of a machine or a container before an @; in other URLs it can only be a key.
NAMED_USERS = {"sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs", "abfs", "abfss", "az",
               "oci", "ocilake"}  # fmt: skip


def check_address(address: str) -> str:
    """The address. Raises ValueError, without the secret in its text, for one that holds a user or a token."""
    if "@" in address:
        raise ValueError(
            "the address has a user, a password or a token in it, and it is written into files. Remedy: leave it out; "
            f"a cluster's token goes into {TOKEN}"
        )
    return address


def is_url(storage: str) -> bool:
    return "://" in storage


def check_storage(storage: str) -> str:
    """The folder or URL. Raises ValueError, without any secret in its text, for one that is unsafe or unknown."""
    if not is_url(storage):
        return storage
    if not storage.isprintable() or " " in storage or "::" in storage:
        raise ValueError("the URL has spaces, characters that do not print, or '::' in it. Allowed: one store, such as "
                         "s3://bucket/runs")  # fmt: skip
    try:
        parts = urlsplit(storage)
        secret = parts.password is not None or parts.query or parts.fragment
        # s3:///KEY@bucket counts too: a library may read it as s3://KEY@bucket.
        authority = parts.netloc or parts.path.lstrip("/").partition("/")[0] * (parts.scheme not in ("file", "local"))
    except ValueError:  # whose text repeats the URL
        raise ValueError("the URL cannot be read. Allowed: a folder, or a URL such as s3://bucket/runs") from None
    if secret or ("@" in authority and parts.scheme not in NAMED_USERS):
        raise ValueError(
            f"the {parts.scheme} URL has a user, a password, a key or a query in it, and it is written into files. "
            "Remedy: leave them out and give them by environment variables, or in the library's own file "
            "(~/.aws/credentials)"
        )
    from fsspec import available_protocols

    known = sorted(available_protocols())
    if parts.scheme not in known or parts.scheme == "memory":
        raise ValueError(f"storage of the kind '{parts.scheme}://' is not known. Allowed: a folder, or s3://, gs://, "
                         "abfs://, sftp://, file:// and others of fsspec's")  # fmt: skip
    return storage.rstrip("/")


def hidden(text: str) -> str:
    """``text`` with *** for values of environment variables that are named like secrets."""
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search("SECRET|TOKEN|PASSWORD|ACCESS_KEY", name):
            text = text.replace(value, "***")
    return text
