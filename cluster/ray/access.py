"""Who can use a Ray cluster: its token, where it listens, and who can open its files.

Whoever reaches Ray's ports can run code as its user, unless the cluster asks for a token. A cluster
that is started here asks for one, listens on loopback alone, and keeps its files in a folder of its
user. Whether a running cluster asks for one is found out before Ray connects: with a wrong setting
Ray 2.60 would try for 20 s and then not say why, or connect and lose its actors.
"""

import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.placement import CONNECT_SECONDS, ClusterError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
Mode = Literal["token", "disabled"]

PROBE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call of the cluster's controller (GCS) that changes nothing."""


@dataclass(frozen=True)
class Token:
    """Ray's token, and the environment variable or file it is from."""

    text: str
    source: str


def token_file() -> Path:
    """Where Ray looks for the token when RAY_AUTH_TOKEN is not set."""
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")


def find_token() -> Token | None:
    """The token that Ray would use, or None."""
    if text := os.environ.get(TOKEN, "").strip():
        return Token(text, TOKEN)
    try:
        text = token_file().read_text().strip()
    except OSError:
        return None
    return Token(text, str(token_file())) if text else None


def chosen_mode() -> Mode | None:
    """What RAY_AUTH_MODE says; None if it is not set.

    Raises:
        ClusterError: When it is neither: Ray would take a misspelt word for "disabled".
    """
    words = os.environ.get(MODE, "").lower()
    if words == "token":
        return "token"
    if words in ("", "disabled"):
        return "disabled" if words else None
    raise ClusterError(f"{MODE}={words} is unknown; token or disabled would work")


def ensure_token() -> None:
    """Have a token for a new cluster, in a file that its owner alone can read.

    Ray would write one, but readable for everybody on the machine.

    Raises:
        ClusterError: When the file cannot be written.
    """
    path = token_file()
    try:
        if find_token() is None:
            _write_new(path, secrets.token_hex(32))
        elif TOKEN not in os.environ and path.stat().st_uid == os.getuid():
            path.chmod(0o600)
    except OSError as error:
        raise ClusterError(
            f"Ray's token cannot be kept in {path} ({error}); set {TOKEN_PATH} to a file that can "
            f"be written, or {TOKEN} to a token"
        ) from error


def _write_new(path: Path, text: str) -> None:
    """Write a file that appears whole, and only if no other process was first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        os.unlink(partial)


def mode_of(address: str) -> Mode | None:
    """Whether a running cluster asks for a token; None if that cannot be found out.

    Args:
        address: `host:port` of the cluster's controller.

    Raises:
        ClusterError: When RAY_AUTH_MODE says otherwise, or when this process has no token, or
            another one than the cluster's.
    """
    is_open, chosen = _serves(address, None), chosen_mode()
    if is_open is None:
        return chosen
    if is_open:
        if chosen == "token":
            raise ClusterError(
                f"it asks for no token, but {MODE} is set to token here, and Ray fails when only "
                f"one side uses tokens: unset {MODE}, or start the cluster with {MODE}=token"
            )
        return "disabled"
    if chosen == "disabled":
        raise ClusterError(f"it asks for a token, but {MODE} is set to disabled here: unset it")
    where = f"copy the cluster's token (there, `ray get-auth-token` prints it) into {token_file()}"
    token = find_token()
    if token is None:
        raise ClusterError(f"it asks for a token, and there is none here: {where}, or set {TOKEN}")
    if _serves(address, token.text) is False:
        raise ClusterError(f"it does not accept the token in {token.source}: {where}")
    return "token"


def _serves(address: str, token: str | None) -> bool | None:
    """Whether the cluster answers a call with this token; None if it does not answer at all."""
    import grpc

    header = [("authorization", f"Bearer {token}")] if token else []
    # As Ray does: a proxy that the environment names is for the web.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address, options) as channel:
        try:
            channel.unary_unary(PROBE)(b"", timeout=CONNECT_SECONDS, metadata=header)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return None  # Ray's own TLS, say.
            # Other errors are about the empty question, which was let in.
            return bool(error.code() != grpc.StatusCode.UNAUTHENTICATED)
    return True


def open_warning(address: str) -> str:
    """What to tell the user of a cluster that asks for no token."""
    return (
        f"the Ray cluster at {address} asks for no token: whoever reaches its ports can run code "
        f"as its user. Start it with {MODE}=token; {MODE}=disabled here keeps this note away"
    )


@contextmanager
def authentication(mode: Mode | None) -> Iterator[None]:
    """Have this process, and those that Ray starts in it, use the token or not."""
    before = os.environ.get(MODE)
    _set_mode(mode or before)
    try:
        yield
    finally:
        _set_mode(before)


def _set_mode(mode: str | None) -> None:
    from ray._private.authentication import authentication_token_setup as setup

    if mode is None:
        os.environ.pop(MODE, None)
    else:
        os.environ[MODE] = mode
    # Ray read the environment when it was imported, and the token when it was first used.
    setup.Config.initialize("")
    setup.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def on_loopback() -> Iterator[None]:
    """Have a Ray cluster that is started meanwhile listen on 127.0.0.1 alone.

    Ray does that by itself on macOS and Windows, where it starts no clusters of several machines
    (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER). On Linux its controller, raylet and workers listen on all
    addresses, whatever address the node is given.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def private_folder() -> str | None:
    """Where a cluster on this machine keeps its files; None if RAY_TMPDIR says where.

    Ray lets everybody write in its folders, also in that of its sockets; nobody else can enter
    the folder around them.

    Raises:
        ClusterError: When another user has made that folder.
    """
    if os.environ.get("RAY_TMPDIR"):
        return None
    # A short name, because the paths of sockets must be short.
    folder = Path(tempfile.gettempdir(), f"ray-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ClusterError(
            f"Ray's files cannot be kept in {folder}, which is not this user's folder; set "
            "RAY_TMPDIR to a folder of yours with a short name"
        )
    folder.chmod(0o700)
    return str(folder / "ray")
