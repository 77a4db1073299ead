#!/bin/sh
# The interpreter of one pytest-xdist worker, in a machine of its own as far as tests can tell (see
# parallel.py). All of it ends with pytest, however that ends: the kernel kills the worker with its
# parent, and what the worker made with the worker.
#
#   worker.sh PYTHON ARGUMENT…
set -e

if [ "${CNI_TEST_WORKER:-}" != inside ]; then
    CNI_TEST_WORKER=inside exec setpriv --pdeathsig KILL \
        unshare --pid --fork --kill-child --mount-proc --mount --propagation private \
        /bin/sh "$0" "$@"
fi
unset CNI_TEST_WORKER
mount -t tmpfs -o mode=755 run /run
# What a runtime of this machine keeps there; it may be readable by root only.
if [ -d /var/lib/cni ]; then mount -t tmpfs -o mode=755 cni /var/lib/cni; fi
# Not by exec: process 1 has to collect the orphans, and no signal without a handler reaches it.
"$@"
exit $?
