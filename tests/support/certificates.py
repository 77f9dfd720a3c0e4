"""Certificates for loopback, and their files as tools that renew them write them."""

from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Authority:
    """An authority's own certificate in a file, and the server's files that it signed for."""

    ca: Path
    chain: Path
    key: Path


def issue(directory: Path, name: str) -> Authority:
    """Sign a certificate for loopback, by an authority of its own, into the server's files."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    signed = Authority(directory / f"{name}.pem", directory / "chain.pem", directory / "key.pem")
    authority.cert_pem.write_to_path(signed.ca)
    replace(signed.chain, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    replace(signed.key, issued.private_key_pem.bytes())
    return signed


def replace(path: Path, content: bytes) -> None:
    """Rename over the file, as tools that renew certificates do."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)
