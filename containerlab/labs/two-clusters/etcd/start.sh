#!/bin/sh
# etcd of one cluster: start.sh CLUSTER OTHER ADDRESS
# Mutual TLS; the certificate's common name is the user. roles.sh gives the users their roles as soon as etcd answers:
# it runs at every start, so that an etcd whose data was wiped is closed again by itself.
set -eu
rm -f /run/etcd-roles-set
sh /etc/etcd/roles.sh "$1" "$2" &
# A token of its own for each life of the data: readers must see that an emptied etcd is another one.
exec etcd --initial-cluster-token "$(cat /proc/sys/kernel/random/uuid)" --name "$1" --data-dir /var/lib/etcd/data \
    --listen-client-urls "https://[::]:2379" --advertise-client-urls "https://$3:2379" \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster "$1=http://127.0.0.1:2380" \
    --cert-file /etc/etcd/pki/server.crt --key-file /etc/etcd/pki/server.key \
    --trusted-ca-file /etc/etcd/pki/ca.crt --client-cert-auth \
    --auto-compaction-mode periodic --auto-compaction-retention 1h --log-level warn
