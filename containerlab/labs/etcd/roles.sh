#!/bin/sh
# Users and roles of one cluster's etcd: roles.sh CLUSTER PARTNER [relay]
#   root             everything; used by this script and by `tombolo mesh connect`
#   agent-CLUSTER    writes what the cluster publishes: cilium/ and tombolo/
#   remote-PARTNER   reads what a partner may read; none if PARTNER is `-`: `tombolo mesh connect` makes it
#   relay-CLUSTER    with `relay`: writes mirrors of other clusters and stands for election, and nothing else
#   local-CLUSTER    with `relay`: reads those mirrors, as `tombolo mesh connect --mirrors` would have it
# Saying it again changes nothing: what is there already answers "already exists". Each member of an etcd says it.
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
        e user add "agent-$1" --no-password
        e user grant-role "agent-$1" agent
        if [ "$2" != - ]; then
            e role add remote
            e role grant-permission remote --prefix=true read cilium/.heartbeat
            e role grant-permission remote --prefix=true read cilium/state/
            e role grant-permission remote read "cilium/cluster-config/$1"
            e role grant-permission remote --prefix=true read "cilium/synced/$1/"
            e user add "remote-$2" --no-password
            e user grant-role "remote-$2" remote
        fi
        if [ "${3:-}" = relay ]; then
            e role add relay
            e role add local
            for prefix in cilium/cache/ cilium/cluster-config/ cilium/synced/ tombolo/relay/; do
                e role grant-permission relay --prefix=true readwrite "$prefix"
                e role grant-permission local --prefix=true read "$prefix"
            done
            e role grant-permission relay readwrite tombolo/election/relay
            for role in relay local; do
                e role grant-permission "$role" --prefix=true read cilium/.heartbeat
                e user add "$role-$1" --no-password
                e user grant-role "$role-$1" "$role"
            done
        fi
        e user add root --no-password
        e role add root
        e user grant-role root root
    } 2>&1
)
if e auth enable && e user get "agent-$1"; then
    touch /run/etcd-roles-set
else
    echo "$said" >&2
    echo "roles.sh: the roles of etcd $1 are not set; the lines above say why" >&2
    exit 1
fi
