"""A certificate authority of a test's own, which no client trusts by default."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_authority(folder: Path, name: str) -> str:
    """Makes an authority and a certificate of it for `DNS:…` or `IP:…`: `ca.pem`, `host.pem`, `host.key`. Returns the
    first."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    make = ["openssl", "req", "-x509", *key]
    for arguments in (
        # Python 3.13 takes an authority only if it says that it may be one.
        ["-subj", "/CN=authority", "-addext", "keyUsage=keyCertSign", "-keyout", "ca.key", "-out", "ca.pem"],
        [
            *("-subj", "/CN=host", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-addext", f"subjectAltName={name}", "-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", "host.key", "-out", "host.pem"),
        ],
    ):
        subprocess.run([*make, *arguments], cwd=folder, check=True, capture_output=True, timeout=30)
    return (folder / "ca.pem").read_text()
