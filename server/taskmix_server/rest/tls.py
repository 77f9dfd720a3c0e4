"""TLS for uvicorn: a context whose connections get the certificate of the moment."""

import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from taskmix_server.runtime.certificates import CertificateFiles


def tls_factory(certificate: CertificateFiles) -> Callable[..., ssl.SSLContext]:
    """Makes uvicorn's context, one that asks for the certificate at each handshake."""
    return lambda *_: _serving_context(certificate)


def _serving_context(certificate: CertificateFiles) -> ssl.SSLContext:
    in_use = certificate.current, certificate.context()

    def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> Any:
        nonlocal in_use
        pair = certificate.current
        if pair is not in_use[0]:
            with suppress(OSError):  # replaced again since `current` read them
                in_use = pair, certificate.context()
        connection.context = in_use[1]

    outer = certificate.context()
    outer.sni_callback = choose  # called at every handshake, with or without a name
    return outer
