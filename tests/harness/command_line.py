"""A node on which the command line is used, beside a container runtime that knows nothing of it."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .netns import PATH, Netns
from .runtime import Runtime
from .variants import V4, Family

Json = dict[str, Any]


@dataclass
class Pod:
    """A container that a runtime attached: 64-digit id, CNI_ARGS of Kubernetes, libcni's cache."""

    cid: str
    namespace: str
    name: str
    netns: Netns
    result: Json
    ifname: str = "eth0"

    @property
    def pod(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def address(self) -> str:
        return str(self.result["ips"][0]["address"]).partition("/")[0]


class Node:
    """A node with the installed file, one network, and the state below `root`."""

    def __init__(self, host: Netns, bin_dir: Path, root: Path) -> None:
        self.host = host
        self.bin_dir = bin_dir
        self.cache = root / "cache"
        self.net_d = root / "net.d"
        self.data_dir = root / "networks"
        self.net_d.mkdir()
        self.env = {
            "PATH": PATH,
            "LC_ALL": "C",
            "NETCONFPATH": str(self.net_d),
            "CNI_PATH": str(bin_dir),
            "CNI_STATE_DIR": str(root / "state"),
        }

    def configure(self, family: Family = V4, version: str = "1.1.0", **keys: Any) -> None:
        bridge = {"type": "bridge", "isGateway": True, "ipam": family.host_local(self.data_dir)}
        conf = {
            "cniVersion": version,
            "name": "net",
            "plugins": [{**bridge, "capabilities": {"mac": True}, **keys}],
        }
        (self.net_d / "10-net.conflist").write_text(json.dumps(conf))

    def argv(self, *args: str) -> list[str]:
        extra = []
        if args[0] not in ("plugins", "completion", "--version", "install", "uninstall", "reload"):
            extra = ["--cache-dir", str(self.cache)]
        return [str(self.bin_dir / "cni"), *args, *extra]

    def write(self, conf: Json, name: str = "") -> Json:
        """Configure a network: `conf` is a configuration list."""
        (self.net_d / f"10-{name or conf['name']}.conflist").write_text(json.dumps(conf))
        return conf

    def network(self, name: str, subnet: str, *more: Json, **keys: Any) -> Json:
        """Configure a bridge network of its own, with `more` plugins after the bridge."""
        ipam = {
            "type": "host-local",
            "dataDir": str(self.data_dir),
            "ranges": [[{"subnet": subnet}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": f"br-{name}"[:15], "isGateway": True, "ipam": ipam}
        conf = {"cniVersion": "1.0.0", "name": name, "plugins": [{**bridge, **keys}, *more]}
        return self.write(conf)

    def start(
        self,
        conf: Json,
        netns: Netns,
        pod: str = "default/web-0",
        *,
        cid: str = "",
        ifname: str = "eth0",
        bin_dir: Path | None = None,
        capabilities: Mapping[str, Any] | None = None,
        cached: bool = True,
    ) -> Pod:
        """Attach a container as containerd does, with the plugins of `bin_dir` (else ours)."""
        cid = cid or os.urandom(32).hex()
        namespace, name = pod.split("/")
        pairs = [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", namespace],
            ["K8S_POD_NAME", name],
            ["K8S_POD_INFRA_CONTAINER_ID", cid],
        ]
        runtime = self.runtime(bin_dir)
        args = ";".join("=".join(pair) for pair in pairs)
        result = runtime.add_list(
            conf, netns, container_id=cid, ifname=ifname, args=args, capabilities=capabilities
        )
        if cached:
            record = {
                "kind": "cniCacheV1",
                "containerId": cid,
                "config": base64.b64encode(json.dumps(conf).encode()).decode(),
                "ifName": ifname,
                "networkName": conf["name"],
                "netns": netns.path,
                "cniArgs": pairs,
                **({"capabilityArgs": dict(capabilities)} if capabilities else {}),
                "result": result,
            }
            results = self.cache / "results"
            results.mkdir(parents=True, exist_ok=True)
            (results / f"{conf['name']}-{cid}-{ifname}").write_text(json.dumps(record))
        return Pod(cid, namespace, name, netns, result, ifname)

    def runtime(self, bin_dir: Path | None = None) -> Runtime:
        """What runs plugins as a container runtime does."""
        env = {"CNI_STATE_DIR": self.env["CNI_STATE_DIR"]}
        return Runtime(bin_dir or self.bin_dir, self.host, env=env)

    def leases(self, network: str) -> dict[str, str]:
        """Address -> container id, as host-local's files say it."""
        path = self.data_dir / network
        names = [each for each in path.iterdir() if each.name[0].isdigit()]
        return {each.name: each.read_text().split()[0] for each in names}

    def json(self, *args: str, code: int = 0, **env: str) -> Any:
        """What the command prints with --json; nothing else may be printed."""
        done = self.run(*args, "--json", **env)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
        return json.loads(done.stdout)

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.host.exec(self.argv(*args), check=False, env={**self.env, **env}, cwd="/")

    def ok(self, *args: str, **env: str) -> str:
        done = self.run(*args, **env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        return done.stdout

    def person(
        self, *args: str, typed: str = "", meanwhile: Callable[[], Any] | None = None, **env: str
    ) -> tuple[int, str]:
        """Run it on a terminal: exit code, and what the terminal shows.

        `meanwhile` is called when the command has asked, before the answer `typed`.
        """
        master, terminal = pty.openpty()
        try:
            child = self.host.popen(
                self.argv(*args),
                # No colours and a known width: tests compare what the terminal shows.
                env={**self.env, "TERM": "dumb", "COLUMNS": "80", **env},
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
            )
            # Reading ends when nobody has the terminal open any more: only the child may have it.
            os.close(terminal)
            shown = b""
            if meanwhile is not None:
                while b"[y/N]" not in shown:
                    shown += os.read(master, 65536)
                meanwhile()
            os.write(master, typed.encode())
            try:
                while chunk := os.read(master, 65536):
                    shown += chunk
            except OSError:  # how the end of a terminal reads
                pass
            return child.wait(60), shown.decode().replace("\r\n", "\n")
        finally:
            os.close(master)

    @property
    def results(self) -> list[str]:
        path = self.cache / "results"
        return sorted(os.listdir(path)) if path.exists() else []
