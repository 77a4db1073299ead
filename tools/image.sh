#!/bin/sh
# Builds the image of the server (deploy/Containerfile), pushes it, and writes dist/daemonset.yaml,
# which names the image by its digest: what was tested is what nodes run. The image is for this
# machine's processor, and has dist/cni-linux-MACHINE in it (`make build-selfcontained`).
#
#     tools/image.sh NAME[:TAG] [BASE]
#
# BASE is the image to build on. A tag is looked up once, and its digest is printed and used. ENGINE
# names another program than podman with the same options.
set -eu
cd "$(dirname "$0")/.."
name=${1:?give the name of the image in your registry, for example with make image IMAGE=NAME}
base=${2:-docker.io/library/debian:12-slim}
engine=${ENGINE:-podman}
manifest=dist/daemonset.yaml
file=dist/cni-linux-$(uname -m)

if [ ! -x "$file" ]; then
    echo "image: $file is missing: run make build-selfcontained" >&2
    exit 1
fi

case $base in
    *@sha256:*) ;;
    *)
        "$engine" pull --quiet "$base" >/dev/null
        base=$("$engine" image inspect --format '{{index .RepoDigests 0}}' "$base")
        ;;
esac
mkdir -p dist
digests=$(mktemp dist/.digest.XXXXXX)
trap 'rm -f "$digests" "$manifest.new"' EXIT
"$engine" build --build-arg "BASE=$base" --build-arg "FILE=$file" --tag "$name" --file deploy/Containerfile .
"$engine" push --quiet --digestfile "$digests" "$name"
digest=$(cat "$digests")
case $digest in
    sha256:????????????????????????????????????????????????????????????????) ;;
    *) echo "image: $engine gave no digest, but '$digest'" >&2; exit 1 ;;
esac
# The digest belongs to the repository, whatever the tag was; a colon before a slash is a port.
case ${name##*/} in
    *:*) repository=${name%:*} ;;
    *) repository=$name ;;
esac
sed "s|@IMAGE@|$repository@$digest|" deploy/daemonset.yaml >"$manifest.new"
mv "$manifest.new" "$manifest"
echo "image: built on $base"
echo "image: $manifest runs $repository@$digest"
