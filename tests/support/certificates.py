"""A self-signed certificate for localhost that every client of this machine can be told to trust."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

#: Since Python 3.13 a client's default context requires these extensions.
CONFIGURATION = """
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = localhost
[extensions]
basicConstraints = critical, CA:true
keyUsage = critical, digitalSignature, keyCertSign
subjectKeyIdentifier = hash
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


def make(folder: Path, openssl: str = "openssl") -> tuple[Path, Path]:
    """Make a certificate in a folder. Return its path and that of its key, which only this user may read."""
    configuration, certificate, key = folder / "openssl.cnf", folder / "certificate.pem", folder / "key.pem"
    configuration.write_text(CONFIGURATION)
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-config", configuration]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True, timeout=60)
    key.chmod(0o600)
    return certificate, key


def contexts(certificate: str | Path, key: str | Path | None = None) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the context of a server with a certificate, and that of a client that trusts only it."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(certificate, key)
    client.load_verify_locations(certificate)
    return server, client
