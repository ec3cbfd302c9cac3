#!/usr/bin/env bash
# Runs one training over two hosts that are network namespaces of this machine: two processes that see
# each other over a virtual cable only, each in a directory of its own.
#
#   sudo scripts/two_hosts.sh DIR_A DIR_B PROGRAM [ARGUMENT...]
#
# starts `torchrun PROGRAM ARGUMENT...` in DIR_A on the first host and in DIR_B on the second, ends with
# the first exit code that is not 0, and removes the namespaces however it ends. PROGRAM is what follows
# torchrun's own options: a script, or -m and a module. PYTHON names the interpreter (default: python).
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
directories=("$1" "$2")
shift 2

id=$$
hosts=("cahl-$id-a" "cahl-$id-b")
cables=("cahl${id}a" "cahl${id}b") # 15 characters at most
net=$((id % 250))
addresses=("10.213.$net.1" "10.213.$net.2")
children=()

finish() {
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    wait || true
    for host in "${hosts[@]}"; do ip netns delete "$host" 2>/dev/null || true; done
}
trap finish EXIT

for host in "${hosts[@]}"; do ip netns add "$host"; done
ip link add "${cables[0]}" netns "${hosts[0]}" type veth peer name "${cables[1]}" netns "${hosts[1]}"
for i in 0 1; do
    ip -n "${hosts[i]}" address add "${addresses[i]}/24" dev "${cables[i]}"
    ip -n "${hosts[i]}" link set "${cables[i]}" up
    ip -n "${hosts[i]}" link set lo up
done

for i in 0 1; do
    (
        cd "${directories[i]}"
        # the same two variables on real hosts: the interface that leads to the other ones
        GLOO_SOCKET_IFNAME=${cables[i]} NCCL_SOCKET_IFNAME=${cables[i]} \
            exec ip netns exec "${hosts[i]}" "${PYTHON:-python}" -m torch.distributed.run \
            --nnodes 2 --nproc_per_node 1 --node_rank "$i" \
            --master_addr "${addresses[0]}" --master_port 29400 "$@"
    ) &
    children+=($!)
done

for _ in 0 1; do
    wait -n || exit # what one host failed with; the trap ends the other
done
