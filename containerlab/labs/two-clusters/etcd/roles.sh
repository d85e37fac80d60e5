#!/bin/sh
# Users and roles of one cluster's etcd: roles.sh CLUSTER OTHER
#   root             everything; used by this script only
#   agent-CLUSTER    writes what the cluster publishes: cilium/ and tombolo/
#   remote-OTHER     reads what a peer of the mesh may read, and not a key more
# Saying it again changes nothing: what is there already answers "already exists".
set -u
export ETCDCTL_API=3
e() {
    etcdctl --endpoints https://127.0.0.1:2379 --dial-timeout 20s --command-timeout 20s \
        --cacert /etc/etcd/pki/ca.crt --cert /etc/etcd/pki/root.crt --key /etc/etcd/pki/root.key "$@"
}
said=$(
    {
        e role add agent
        e role grant-permission agent --prefix=true readwrite cilium/
        e role grant-permission agent --prefix=true readwrite tombolo/
        e role add remote
        e role grant-permission remote --prefix=true read cilium/.heartbeat
        e role grant-permission remote --prefix=true read cilium/state/
        e role grant-permission remote read "cilium/cluster-config/$1"
        e role grant-permission remote --prefix=true read "cilium/synced/$1/"
        for user in root "agent-$1" "remote-$2"; do
            e user add "$user" --no-password
        done
        e user grant-role "agent-$1" agent
        e user grant-role "remote-$2" remote
        e role add root
        e user grant-role root root
    } 2>&1
)
if e auth enable && e user get "remote-$2"; then
    touch /run/etcd-roles-set
else
    echo "$said" >&2
    echo "roles.sh: the roles of etcd $1 are not set; the lines above say why" >&2
    exit 1
fi
