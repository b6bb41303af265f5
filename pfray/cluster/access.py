"""Access to Ray: the user's token, checked before Ray starts, and a Ray of the run's own for this user only.

Anyone who reaches a Ray can run code in it. Ray supports tokens from version 2.52 on, and its local clusters ask for
one by default from 2.59 on (docs.ray.io/en/latest/ray-security/token-auth.html; pull requests 57835 and 64755 of
ray-project/ray). Ray's own token is in ~/.ray/auth_token, its sockets, logs and spilled objects in /tmp/ray. Other
users of the machine may read the token and replace the other files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pfray.errors import ConfigError, PfrayError
from pfray.utils.session_folder import make_session_folder, remove_session_folder
from pfray.utils.url import MODE, TOKEN, TOKEN_PATH

DEFAULT_TOKEN = Path("~/.ray/auth_token")
# "0" makes Ray listen on 127.0.0.1 only, on every system despite the name. Otherwise it listens on all interfaces, and
# replaces an address of 127.0.0.1 by an interface's.
CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Most characters of a temporary folder's path; the paths of Ray's sockets must stay under the system's limit.
MAX_TEMP_PATH = 20
# Most bytes read of a token file.
MAX_TOKEN_BYTES = 10_000


def check_token() -> None:
    """Raise ConfigError for wrong values of RAY_AUTH_*. The token itself is never shown."""
    mode = os.environ.get(MODE, "")
    if mode.lower() not in ("", "token", "disabled"):
        raise ConfigError(f"{MODE}: {mode[:100]!r} is not allowed. Remedy: token, or disabled")
    if mode.lower() == "disabled":
        return
    token, path = os.environ.get(TOKEN, ""), os.environ.get(TOKEN_PATH, "")
    source, remedy = TOKEN, "Remedy: the cluster's token"
    if not token and path:
        source, remedy = f"{TOKEN_PATH}: {path[:300]!r}", "Remedy: a file that holds the cluster's token"
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise OSError("not a regular file")
            with open(path, "rb") as file:
                token = file.read(MAX_TOKEN_BYTES).decode("latin-1")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigError(f"{source} cannot be read ({why}). {remedy}, or 'unset {TOKEN_PATH}'") from error
        if not token.strip():
            raise ConfigError(f"{source} is empty. {remedy}, or 'unset {TOKEN_PATH}'")
    # The token is sent in a header. For one that no header can have, Ray reports that the cluster does not answer.
    if not all(" " <= character <= "~" for character in token.strip()):
        raise ConfigError(f"{source}: a token is one line of ASCII characters, and this is none. {remedy}")


def show_token() -> None:
    """Show clusters the token that Ray finds, unless RAY_AUTH_MODE is set.

    Ray itself would not, or only with a warning.
    """
    if not os.environ.get(MODE) and (_names_token() or DEFAULT_TOKEN.expanduser().exists()):
        _set({MODE: "token"})


@contextlib.contextmanager
def private_ray(*, token_file: bool = False) -> Iterator[Path | None]:
    """Make a Ray that starts in the block listen on 127.0.0.1 only and ask for a new token.

    Ray's sockets, logs and spilled objects are in a folder that only this user can enter. The folder is removed after
    the block, except after a failure, because the logs may tell the reason; like what a killed run left, it is removed
    when another run begins. If Ray is still up after the block, nothing is restored. Variables set by the user are
    kept: RAY_AUTH_MODE, RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, RAY_TMPDIR and RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER.

    token_file: write the token to a file in that folder, for users of the dashboard. Yields the file, or None.
    """
    import ray
    from ray._private import ray_constants

    variables = {}
    mode = os.environ.get(MODE, "").lower()
    if not mode:
        variables[MODE] = "token"
    # If the user asks for tokens, Ray's own file is used. Without it Ray would make one, which others could read.
    if not (mode == "disabled" or _names_token() or (mode and DEFAULT_TOKEN.expanduser().exists())):
        # In the environment of this user's processes, which no other user can read.
        variables[TOKEN] = secrets.token_hex(32)
    if not os.environ.get(CLUSTERS):
        variables[CLUSTERS] = "0"
    shown = token_file and TOKEN in variables
    folder = None
    if shown or not os.environ.get("RAY_TMPDIR"):
        parent = tempfile.gettempdir()
        folder = make_session_folder(parent if len(parent) <= MAX_TEMP_PATH else "/tmp")
        if not os.environ.get("RAY_TMPDIR"):
            variables["RAY_TMPDIR"] = str(folder)
    token = None
    if folder is not None and shown:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(variables[TOKEN])
    before, clusters = {name: os.environ.get(name) for name in variables}, ray_constants.ENABLE_RAY_CLUSTER
    _set(variables)
    if CLUSTERS in variables:
        ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported
    keep = False
    try:
        yield token
    except Exception as error:
        keep = not isinstance(error, PfrayError) or error.exit_code == 1
        raise
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
        if not ray.is_initialized():
            _set(before)
            ray_constants.ENABLE_RAY_CLUSTER = clusters
            if folder is not None and not keep:
                remove_session_folder(folder)


def _names_token() -> bool:
    return bool(os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH))


def _set(variables: Mapping[str, str | None]) -> None:
    """Set environment variables for this process and Ray in it; None removes one."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if variables:
        reload_token_settings()


def reload_token_settings() -> None:
    """Make Ray read RAY_AUTH_* from the environment again; it reads them once per process."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
