#!/bin/sh
# A member of one cluster's etcd: start.sh CLUSTER PARTNER NAME ADDRESS NAME=PEER-URL,... [relay]
# Mutual TLS, between members too; a client certificate's common name is the user. roles.sh gives the users their roles as soon
# as etcd answers: it runs at every start, so that an etcd whose data was wiped is closed again by itself.
set -eu
rm -f /run/etcd-roles-set
sh /etc/etcd/roles.sh "$1" "$2" "${6:-}" &
# A single member has a token of its own for each life of its data: readers must see that an emptied etcd is another one.
case "$5" in
*,*) token=$1 ;;
*) token=$(cat /proc/sys/kernel/random/uuid) ;;
esac
# The quota is small, so that it can be used up in a second.
exec etcd --initial-cluster-token "$token" --name "$3" --data-dir /var/lib/etcd/data \
    --listen-client-urls "https://[::]:2379" --advertise-client-urls "https://$4:2379" \
    --listen-peer-urls "https://$4:2380" --initial-advertise-peer-urls "https://$4:2380" --initial-cluster "$5" \
    --cert-file /etc/etcd/pki/server.crt --key-file /etc/etcd/pki/server.key \
    --trusted-ca-file /etc/etcd/pki/ca.crt --client-cert-auth \
    --peer-cert-file /etc/etcd/pki/server.crt --peer-key-file /etc/etcd/pki/server.key \
    --peer-trusted-ca-file /etc/etcd/pki/ca.crt --peer-client-cert-auth \
    --quota-backend-bytes 33554432 --auto-compaction-mode periodic --auto-compaction-retention 1h --log-level warn
