#!/bin/sh
# Start a trial's ranks on two nodes, each a network namespace of its own, by torchrun's rendezvous.
# Arguments: the interpreter, then what torchrun is to run.
set -e
python=$1
shift
here=$$
for node in 0 1; do
    unshare --net sleep 600 &
    eval "pid$node=$!"
done
trap 'kill $pid0 $pid1 2>/dev/null' EXIT
sleep 0.5
ip link add name "tb0-$here" netns "$pid0" type veth peer name "tb1-$here" netns "$pid1"
for node in 0 1; do
    eval "inside=\$pid$node"
    nsenter --net --target "$inside" ip address add "10.77.0.$((node + 1))/24" dev "tb$node-$here"
    nsenter --net --target "$inside" ip link set "tb$node-$here" up
    nsenter --net --target "$inside" ip link set lo up
    GLOO_SOCKET_IFNAME="tb$node-$here" nsenter --net --target "$inside" \
        "$python" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank "$node" \
        --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29400 --rdzv-id trial \
        --rdzv-conf "is_host=$((1 - node))" \
        --local-addr "10.77.0.$((node + 1))" "$@" &
    eval "agent$node=$!"
done
status=0
wait "$agent0" || status=$?
wait "$agent1" || status=$?
exit "$status"
