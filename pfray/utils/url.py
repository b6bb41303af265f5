"""Addresses and storage URLs that an experiment may name."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

# Environment variables by which Ray finds a cluster's token.
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# What stands before an @ in theirs is a user of a machine, or the name of a container; elsewhere it can only be a key.
NAMED_USERS = {"sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs", "abfs", "abfss", "az",
               "oci", "ocilake"}  # fmt: skip


def check_address(address: str) -> str:
    """A cluster's address that may be kept in files and shown. Raises ValueError, whose text has no secret in it."""
    if "@" in address:
        raise ValueError(
            "the address has a user, a password or a token in it, and it is written into files. Remedy: leave it out; "
            f"a cluster's token goes into {TOKEN}"
        )
    return address


def is_url(storage: str) -> bool:
    return "://" in storage


def check_storage(storage: str) -> str:
    """A folder or a URL that may be kept in files and shown. Raises ValueError, whose text has no part of a secret."""
    if not is_url(storage):
        return storage
    if not storage.isprintable() or " " in storage or "::" in storage:
        raise ValueError("the URL has spaces, characters that do not print, or '::' in it. Allowed: one store, such as "
                         "s3://bucket/runs")  # fmt: skip
    try:
        parts = urlsplit(storage)
        secret = parts.password is not None or parts.query or parts.fragment
        # In s3:///KEY@bucket, too, which a library may read as it was meant.
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
    """``text`` without the values of environment variables that are named like a secret."""
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search("SECRET|TOKEN|PASSWORD|ACCESS_KEY", name):
            text = text.replace(value, "***")
    return text
