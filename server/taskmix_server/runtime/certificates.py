"""The server's certificate, read again when its files change."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from taskmix_server.errors import FailedPreconditionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """A private key and its chain of certificates, both PEM."""

    key: bytes
    chain: bytes


class CertificateFiles:
    """Both edges ask it at each handshake, from any thread; it looks at the files' times.

    Files that do not fit each other, as while one of them is being replaced, are passed over until
    they do.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        """Raises FailedPreconditionError if the files are no certificate and its key."""
        self._chain = chain
        self._key = key
        self._seen: tuple[object, ...] = ()
        pair = self._read()
        if isinstance(pair, Exception):
            raise FailedPreconditionError(
                f"{chain} and {key} are not a certificate and its private key, both PEM ({pair}); "
                "see --tls-cert and --tls-key"
            ) from pair
        self._pair = pair

    @property
    def current(self) -> KeyPair:
        """The pair that new connections get. The same object while nothing changed."""
        if self._stamp() != self._seen:
            pair = self._read()
            if isinstance(pair, Exception):
                logger.warning("the new TLS files do not work, the old stay in use: %s", pair)
            elif pair != self._pair:
                logger.info("new TLS certificate from %s", self._chain)
                self._pair = pair
        return self._pair

    def context(self) -> ssl.SSLContext:
        """A server's context with the files as they are. Raises OSError, which SSLError is."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._chain, self._key)
        return context

    def _read(self) -> KeyPair | OSError:
        """What the files hold now, or why it cannot be used."""
        self._seen = self._stamp()
        try:
            pair = KeyPair(self._key.read_bytes(), self._chain.read_bytes())
            self.context()
        except OSError as error:
            return error
        return pair

    def _stamp(self) -> tuple[object, ...]:
        return tuple(map(_stamp_of, (self._chain, self._key)))


def _stamp_of(path: Path) -> object:
    try:
        status = path.stat()
    except OSError as error:
        return str(error)
    return status.st_mtime_ns, status.st_size, status.st_ino
