"""libnftables, as far as it is needed: commands in, all of them or none; never the `nft` program."""

from __future__ import annotations

import ctypes
from functools import cache

from nfknock.errors import BackendError, BusyError
from nfknock.netlink import InterruptedDumpError

_NAME = "libnftables.so.1"
# nftables/libnftables.h: without the elements of sets, without counters.
_TERSE, _STATELESS = 1 << 11, 1 << 2


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_NAME)
    except OSError:
        raise BackendError(f"{_NAME} is not installed; on Debian and Ubuntu: apt install libnftables1") from None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_free.restype = None
    return library


def load() -> None:
    """Load the library. Raises BackendError where there is none."""
    _library()


def run(commands: str) -> str:
    """Run commands in nft's language, as one transaction; return what they print. Raises BackendError with the reason.

    Listings come without sets' elements and without counters.
    """
    library = _library()
    # One for each transaction: what a context remembers of the ruleset may be out of date the next time.
    context = library.nft_ctx_new(0)
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        library.nft_ctx_output_set_flags(context, _TERSE | _STATELESS)
        failed = library.nft_run_cmd_from_buffer(context, commands.encode())
        if failed:
            raise BackendError(_reason(library.nft_ctx_get_error_buffer(context).decode(errors="replace")))
        return str(library.nft_ctx_get_output_buffer(context).decode(errors="replace"))
    finally:
        library.nft_ctx_free(context)


def reason(exc: OSError) -> str:
    """Return why the kernel refused something, as the end of an error's line."""
    if isinstance(exc, PermissionError):
        return "permission denied; run this as root"
    return (exc.strerror or str(exc)).lower()


def unreadable(what: str, exc: OSError) -> BackendError:
    """Return what to raise where the kernel could not be asked for something."""
    kind = BusyError if isinstance(exc, InterruptedDumpError) else BackendError
    return kind(f"reading {what}: {reason(exc)}")


def _reason(said: str) -> str:
    """Return the first error in one line, with what it is about; not with the rule, where knock ports stand."""
    lines = said.splitlines() or ["no reason is known"]
    command = next((line.split() for line in lines[1:] if line.strip() and not line.strip().startswith("^")), [])
    reason = lines[0].partition("Error: ")[2] or lines[0]
    about = " ".join(command[:5])
    return f"nf_tables: {reason}{f' ({about})' if about else ''}"
