#!/bin/bash
# make demo: network two containers on a node of our own, show them talking, clean up.
#
# Everything happens in network namespaces made here: `node` plays the machine, `one` and `two` the
# containers, `world` a host beyond the node. Nothing outside them is changed.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
tag=cnidemo$$
node=$tag-node one=$tag-one two=$tag-two world=$tag-world
work=$(mktemp -d)
# The self-contained file where there is one: that needs no Python on the node.
for file in "$top/dist/cni-linux-$(uname -m)" "$top/dist/release/cni-linux-$(uname -m)" "$top/dist/cni"; do
    [ ! -x "$file" ] || break
done

step() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
in_ns() { local ns=$1; shift; ip netns exec "$ns" "$@"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

cleanup() {
    local ns
    [ -z "${server:-}" ] || kill "$server" 2>/dev/null || true
    for ns in "$one" "$two" "$world" "$node"; do
        ip netns del "$ns" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

cni() { # the command line tool, run on the node
    in_ns "$node" env NETCONFPATH="$work/net.d" CNI_PATH="$work/bin" \
        "$work/bin/cni" "$1" --cache-dir "$work/cache" "${@:2}"
}

step "Install: one file, one symlink a plugin"
run "$file" install --bin-dir "$work/bin"
ls -l "$work/bin"

step "A node with an uplink, a host beyond it, two empty containers"
for ns in "$node" "$one" "$two" "$world"; do ip netns add "$ns"; done
ip -n "$node" link set lo up
ip -n "$node" link add uplink type veth peer name eth0 netns "$world"
ip -n "$node" address add 192.0.2.1/24 dev uplink
ip -n "$node" link set uplink up
ip -n "$world" address add 192.0.2.2/24 dev eth0
ip -n "$world" link set eth0 up
echo "node 192.0.2.1 ── world 192.0.2.2 (which has no route to the containers)"

step "The network"
mkdir -p "$work/net.d"
cat >"$work/net.d/10-demo.conflist" <<CONF
{
  "cniVersion": "1.1.0",
  "name": "demo",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "demo0",
      "isDefaultGateway": true,
      "ipMasq": true,
      "ipMasqBackend": "nftables",
      "ipam": {
        "type": "host-local",
        "dataDir": "$work/leases",
        "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]
      }
    }
  ]
}
CONF
cat "$work/net.d/10-demo.conflist"

step "ADD: first container"
cni add demo "/run/netns/$one"
step "ADD: second container"
cni add demo "/run/netns/$two" >/dev/null
address() { ip -n "$1" -j address show eth0 | python3 -c '
import json, sys
print(next(a["local"] for a in json.load(sys.stdin)[0]["addr_info"]
           if a["family"] == sys.argv[1] and a["scope"] == "global"))' "$2"; }
two4=$(address "$two" inet) two6=$(address "$two" inet6)

step "What the kernel has now"
run ip -n "$one" -brief address
run ip -n "$one" route
run ip -n "$node" -brief link show master demo0
run in_ns "$node" nft list table inet cni_plugins_masquerade

step "They talk: IPv4, IPv6, and TCP"
run in_ns "$one" ping -c 2 -i 0.2 -W 2 "$two4"
run in_ns "$one" ping -c 2 -i 0.2 -W 2 "$two6"
in_ns "$two" python3 -c '
import socket
server = socket.create_server(("", 8080))
server.settimeout(20)
peer, where = server.accept()
peer.sendall(f"hello {where[0]}, this is the second container\n".encode())
' &
server=$!
in_ns "$one" python3 -c '
import socket, sys, time
for _ in range(100):
    try:
        print(socket.create_connection((sys.argv[1], 8080), 5).makefile().read().strip())
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
else:
    sys.exit("the second container does not answer")
' "$two4"
wait "$server"
server=

step "Outbound: the world sees the node's address"
in_ns "$world" timeout 10 python3 -c '
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("192.0.2.2", 5353))
print("world: a packet from", sock.recvfrom(100)[1][0])
' &
server=$!
sleep 0.3
in_ns "$one" python3 -c '
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", ("192.0.2.2", 5353))'
wait "$server"
server=

step "CHECK, then DEL: nothing stays but the bridge"
cni check demo "/run/netns/$one"
cni del demo "/run/netns/$one"
cni del demo "/run/netns/$two"
run ip -n "$node" -brief link
run ls "$work/leases/demo"
printf '\nDemo finished.\n'
