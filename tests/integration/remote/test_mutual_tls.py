"""The two HAProxy configurations of docs/how-to/remote.md, with certificates made here: who has one reaches the model, who has none does not."""

from __future__ import annotations

import datetime
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shmserve.daemon.engine.models.uplink import DESCRIBE, GrpcUplink, UplinkDown
from shmserve.message import Kind, Packer, Request, read_reply
from shmserve.protocol import Status
from tests.support.daemon_process import wait_until
from tests.support.folders import REPOSITORY
from tests.support.relay import free_port
from tests.support.stand_in_uplink import StandInUplink

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
pytestmark = pytest.mark.skipif(not Path(HAPROXY).exists(), reason="needs apt-get install haproxy")

_HOST = "gpu.example.org"
_VERSION = "3f9c2d17a0b14e55"


class Authority:
    """Signs certificates; its own lies in `folder` as ca.pem."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        made = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, 0), critical=True)
        (folder / "ca.pem").write_bytes(_pem(made.sign(self._key, hashes.SHA256())))

    def issue(self, name: str, host: str) -> None:
        """Write NAME.pem: a certificate for `host` and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        made = self._builder(subject, key).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (self._folder / f"{name}.pem").write_bytes(_pem(made.sign(self._key, hashes.SHA256())) + private)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        return builder.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def configuration(name: str, **replaced: str) -> str:
    """Return a configuration of the page, with the paths, ports and groups of this test."""
    page = (REPOSITORY / "docs/how-to/remote.md").read_text("utf-8")
    found = re.search(rf"```\n(# /etc/haproxy/{name}\.cfg.*?)```", page, re.DOTALL)
    assert found is not None
    text = found[1]
    for old, new in replaced.items():
        assert _KNOWN[old] in text, old
        text = text.replace(_KNOWN[old], new)
    return text


_KNOWN = {
    "tls": "/etc/shmserve/tls",
    "socket": "/run/shmserve/uplink.sock mode 660 group shmserve",
    "cluster": f"{_HOST}:9443",
    "listen": "bind :9443",
    "serve": "127.0.0.1:9000",
}


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def uplink_socket(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The socket on the robot, whose certificate the authority named by the parameter has signed."""
    for authority in ("ours", "theirs"):
        signing = Authority(tmp_path / authority)
        signing.issue("robot", "robot-7")
        signing.issue("cluster", _HOST)
    shutil.copy(tmp_path / "ours" / "ca.pem", tmp_path / "theirs" / "ca.pem")  # the robot trusts the true cluster
    tls, served = free_port(), free_port()
    path = tmp_path / "uplink.sock"
    texts = {
        "shmserve-cluster": configuration(
            "shmserve-cluster", tls=str(tmp_path / "ours"), listen=f"bind 127.0.0.1:{tls}", serve=f"127.0.0.1:{served}"
        ),
        "shmserve-robot": configuration(
            "shmserve-robot", tls=str(tmp_path / request.param), socket=str(path), cluster=f"127.0.0.1:{tls}"
        ),
    }
    running = []
    with StandInUplink(tmp_path / "serve.sock", _VERSION, port=served):
        try:
            # The cluster's first: a server that is there when the robot's proxy starts is up to it from the start.
            for name, listens in (("shmserve-cluster", lambda: _accepts(tls)), ("shmserve-robot", path.exists)):
                (tmp_path / f"{name}.cfg").write_text(texts[name])
                with (tmp_path / f"{name}.log").open("wb") as output:
                    command = [HAPROXY, "-db", "-f", str(tmp_path / f"{name}.cfg")]
                    running.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
                wait_until(f"{name} listens", listens)
            yield path
        finally:
            for process in running:
                process.kill()
                process.wait()


def asked(uplink: GrpcUplink) -> int:
    data = uplink.ask(DESCRIBE, Packer("observation").request(Request(Kind.PROBE)), 5.0, "probe")
    return read_reply(data)[0].status


@pytest.mark.parametrize("uplink_socket", ["ours"], indirect=True)
def test_a_robot_with_a_certificate_reaches_the_model(uplink_socket: Path) -> None:
    uplink = GrpcUplink(f"unix://{uplink_socket}", "double")

    assert asked(uplink) == Status.OK
    uplink.close()


@pytest.mark.parametrize("uplink_socket", ["theirs"], indirect=True)
def test_a_robot_with_another_authoritys_certificate_does_not(uplink_socket: Path) -> None:
    uplink = GrpcUplink(f"unix://{uplink_socket}", "double")

    for _ in range(3):
        with pytest.raises(UplinkDown):
            asked(uplink)
    uplink.close()
