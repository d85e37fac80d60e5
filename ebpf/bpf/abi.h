/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The one ABI between the programs and user space.
 *
 * Addresses are always 16 bytes, IPv4 as ::ffff:a.b.c.d, so that both families share code and maps.
 * Ports and addresses are in network byte order, everything else in host order. There are no
 * bitfields and no implicit padding; src/abi.rs mirrors sizes and offsets and the loader compares
 * both with the BTF of the object. A change of any struct that is stored in a pinned map needs a new
 * TB_SCHEMA, which is also the directory of the pins.
 */
#ifndef TB_ABI_H
#define TB_ABI_H

#include <linux/types.h>

#define TB_SCHEMA 1
#define TB_EVENT_VERSION 2

union tb_addr {
	__u8 b[16];
	__be32 w[4];
	__u64 d[2];
};

/* tb_config flags */
#define TB_CFG_READY (1u << 0)    /* without it every hook that polices drops with 202 */
#define TB_CFG_ENCRYPT (1u << 1)  /* encrypt flags of prefixes and nodes are honoured */
#define TB_CFG_VERDICTS (1u << 2) /* emit a verdict event for each new policed flow */
#define TB_CFG_CSUM6 (1u << 3)    /* the kernel knows BPF_F_IPV6: set when it has accepted it */
#define TB_CFG_CAPTURE (1u << 4)     /* drop events carry the packet's first bytes */
#define TB_CFG_CAPTURE_ALL (1u << 5) /* and so do all others */
#define TB_CFG_PACED (1u << 24)   /* the uplink's queue sends each packet at its time (fq) */
#define TB_CFG_HOST_SERVES (1u << 25) /* set by the programs: the node itself is a backend for clients outside */
#define TB_CFG_SOCK_HOST (1u << 8) /* services are translated at the sockets of the node's own network namespace */
#define TB_CFG_SOCK_PODS (1u << 9) /* and at those of all others below the cgroup */
#define TB_CFG_DSR_TCP (1u << 10) /* outside clients of backends on other nodes are answered from there: of TCP */
#define TB_CFG_DSR_UDP (1u << 11) /* of UDP */
#define TB_CFG_MASQ4 (1u << 16) /* what pods send out of the mesh leaves under the node's address */
#define TB_CFG_MASQ6 (1u << 17)

struct tb_config {
	__u32 schema;
	__u32 flags;
	__u32 cluster_id;
	__u32 uplink_ifindex;
	__u32 overlay_ifindex;
	__u32 wireguard_ifindex;
	__u16 snat_port_min; /* host order, inclusive */
	__u16 snat_port_max; /* host order, inclusive */
	__u16 vxlan_port;    /* host order */
	__u16 pad0;
	__u64 report_interval_ns; /* event aggregation of established flows */
	union tb_addr internal4;     /* the node's address on tombolo_host; SNAT source, pods' gateway */
	union tb_addr internal6;
	union tb_addr underlay4;
	union tb_addr underlay6;
	__u64 clock_offset_ns; /* added to the clock that flows live by: tests move time, else 0 */
	__u32 host_policy_id;  /* of the node's own traffic; 0: none */
	__u16 wireguard_port;  /* host order; 0: none */
	__u16 pad1;
	__u64 netns_cookie;    /* of the node's own network namespace; 0: not known */
	__u32 events_per_sec;  /* told of one interface, on each CPU; 0: all */
	__u32 snat_walk;       /* the least prime that is not below the number of SNAT ports, and 2 at least */
	__u8 report_flags;     /* TCP flags that are told when a direction shows them first */
	__u8 aggregation;      /* TB_AGG_* */
	__u8 spare[22];
};

/* Which packets of a flow are told. */
#define TB_AGG_FLOWS 0 /* what opens it, report_flags, and one in report_interval_ns */
#define TB_AGG_SENT 1  /* each, where it leaves */
#define TB_AGG_NONE 2  /* each, where it comes in and where it leaves */

/* tb_iface flags */
#define TB_IF_READY (1u << 0) /* identity and policy are applied; without it: drop 203 */
#define TB_IF_LIMIT_OUT (1u << 1) /* what the pod sends is limited: tb_rates */
#define TB_IF_LIMIT_IN (1u << 2)  /* what it receives is */
#define TB_IF_PRIORITY (1u << 3)  /* what it sends has the priority below */
#define TB_IF_QUEUED (1u << 4)    /* plugins keep its packets in queues of this interface, which none may pass by */

struct tb_iface {
	__u32 flags;
	__u32 identity;
	__u32 policy_id;
	__u16 endpoint_id;
	__u16 pad0;
	union tb_addr addr4; /* all zero: the pod has no address of this family */
	union tb_addr addr6;
	__u8 mac[6];      /* of the pod's end */
	__u8 host_mac[6]; /* of the host's end */
	__u32 priority;   /* of what the pod sends, with TB_IF_PRIORITY */
};

/* What a rate is for. */
#define TB_RATE_IN 0    /* what a pod receives */
#define TB_RATE_OUT 1   /* what it sends */
#define TB_RATE_PACED 2 /* what it sends to where packets leave at their time */

struct tb_rate_key {
	__u32 ifindex; /* host end of the pod's veth */
	__u32 way;     /* TB_RATE_* */
};

struct tb_rate {
	__u64 bytes_per_sec;
	__u64 next_ns; /* CLOCK_MONOTONIC: when all that was let through would be through at this rate */
};

/* tb_endpoint flags */
#define TB_EP_HOST (1u << 0) /* an address of this node itself */

struct tb_endpoint {
	__u32 ifindex; /* host end of the pod's veth; 0 for the node itself */
	__u32 flags;
};

/* tb_prefix flags */
#define TB_PFX_ENCRYPT (1u << 0)     /* must leave the node encrypted, or not at all */
#define TB_PFX_REMOTE_CLUSTER (1u << 1)
#define TB_PFX_SKIP_TUNNEL (1u << 2) /* reach it directly whatever the node's path says */
#define TB_PFX_STRICT (1u << 3)      /* pods', and nobody has said whose: nothing leaves for it in clear */

struct tb_lpm_key {
	__u32 prefixlen; /* of the 128 bits; an IPv4 prefix has 96 added */
	__u8 addr[16];   /* not tb_addr: its alignment would leave a hole */
};

struct tb_prefix {
	__u32 identity;
	__u32 node; /* index into tb_nodes; 0: none */
	__u32 flags;
};

#define TB_PATH_LOCAL 0
#define TB_PATH_OVERLAY 1
#define TB_PATH_DIRECT 2

/* tb_node flags */
#define TB_NODE_ENCRYPT (1u << 0) /* VXLAN packets to this node go through WireGuard */

struct tb_node {
	union tb_addr tunnel; /* outer destination */
	__u32 path;
	__u32 flags;
	__u32 mtu; /* largest IP packet of a pod on this path; 0: not checked */
	__u32 pad0;
};

/* tb_egw flags; none and no node: no gateway is known, drop 194 */
#define TB_EGW_LOCAL (1u << 0)    /* this node is the gateway */
#define TB_EGW_EXCLUDED (1u << 1) /* goes the way it would go without the policy */

/* Which way a pod's packets leave the mesh. */
struct tb_egw_key {
	__u32 prefixlen; /* 128 for the pod, and those of the destination; an IPv4 prefix has 96 more */
	__u8 src[16];
	__u8 dst[16];
};

struct tb_egw {
	union tb_addr address; /* the source they get, at the gateway; zero: drop 204 */
	__u32 node;            /* the gateway, an index into tb_nodes */
	__u32 ifindex;         /* LOCAL: where they leave */
	__u32 flags;
	__u32 pad0;
};

#define TB_SCOPE_EXTERNAL 0
#define TB_SCOPE_INTERNAL 1

struct tb_service_key {
	union tb_addr addr;
	__be16 port; /* port 0 with proto 0: any other packet to this address is dropped with 158 */
	__u8 proto;
	__u8 scope;
	__u32 pad0;
};

/* tb_service flags */
#define TB_SVC_LOCAL_ONLY (1u << 0) /* externalTrafficPolicy (or internal) Local: why there may be no backend */
#define TB_SVC_NODEPORT (1u << 1) /* a node port: the host reaches it at its loopback address, too */
#define TB_SVC_HOSTPORT (1u << 4) /* a pod's host port: the host reaches it at its loopback address, likewise */
#define TB_SVC_SOURCE_RANGE (1u << 6) /* only for clients in tb_ranges */

struct tb_service {
	__u32 rev_nat;
	__u32 count; /* of backends in the Maglev table; 0: drop 158 */
	__u32 maglev_offset;
	__u32 maglev_size;
	__u32 flags;
	__u32 affinity_secs; /* how long a client is sent to the same backend after it opened a flow; 0: not */
};

/* A prefix of clients that a service with TB_SVC_SOURCE_RANGE takes. */
struct tb_range_key {
	__u32 prefixlen; /* 32 for the number, and those of the address; an IPv4 prefix has 96 more */
	__u32 rev_nat;
	__u8 addr[16];
};

/* A backend that an external frontend has: other nodes may send that frontend's clients to it. */
struct tb_front_key {
	union tb_addr addr; /* of the backend */
	__be16 port;
	__u8 proto; /* of the frontend */
	__u8 pad0;
	__u32 rev_nat;
};

/* Session affinity: whom a client met last. */
struct tb_affinity_key {
	union tb_addr client;
	__u32 rev_nat;
	__u32 by_cookie; /* 0: the client is an address; 1: a network namespace, by its cookie in the first half */
};

struct tb_affinity {
	__u64 last_ns; /* CLOCK_MONOTONIC: when a flow was opened last */
	__u32 backend;
	__be16 port; /* with addr: whom the number meant */
	__u16 pad0;
	union tb_addr addr;
};

/* A backend that takes new flows of a frontend with affinity. */
struct tb_member_key {
	__u32 rev_nat;
	__u32 backend;
	__u32 scope;
};

struct tb_backend {
	union tb_addr addr;
	__be16 port;
	__u8 proto;
	__u8 flags;
	__u32 pad0;
};

/* What a row about a socket tells. */
#define TB_SOCK_FRONTEND 0 /* the key has a backend, the row the frontend that the socket asked for */
#define TB_SOCK_BACKEND 1  /* the key has a frontend, the row the backend that an unconnected socket was given */

struct tb_sock_key {
	__u64 cookie; /* of the socket */
	union tb_addr addr;
	__be16 port;
	__u8 proto;
	__u8 kind; /* TB_SOCK_* */
	__u32 pad0;
};

struct tb_sock {
	union tb_addr addr;
	__be16 port;
	__u16 pad0;
	__u32 rev_nat;
	__u32 backend;
	__u32 pad1;
	__u64 netns; /* cookie of the socket's network namespace: where it is found when it must end */
};

struct tb_rev_nat {
	union tb_addr addr;
	__be16 port;
	__u16 pad0;
	__u32 pad1;
};

/* What a conntrack or NAT entry is about. */
#define TB_CT_EGRESS 0  /* source is a pod of this node */
#define TB_CT_INGRESS 1 /* destination is a pod of this node */
#define TB_CT_SERVICE 2 /* client to frontend: remembers the backend */
#define TB_CT_HOST_IN 5  /* destination is the node itself */
#define TB_CT_HOST_OUT 6 /* source is the node itself */
#define TB_NAT_OUT 3    /* tuple before SNAT */
#define TB_NAT_IN 4     /* tuple of the answers to the SNATed flow */

struct tb_tuple {
	union tb_addr src;
	union tb_addr dst;
	__be16 sport; /* ICMP echo: the identifier at the asking end, 0 at the other */
	__be16 dport;
	__u8 proto;
	__u8 kind; /* TB_CT_* or TB_NAT_* */
	__u16 pad0;
};

/* tb_ct flags */
#define TB_CTF_REPLIED (1u << 0)
#define TB_CTF_CLOSING_ORIG (1u << 1)
#define TB_CTF_CLOSING_REPLY (1u << 2)
#define TB_CTF_LOOPBACK (1u << 3) /* a pod that reaches itself through a service */
#define TB_CTF_CONFIRMED (1u << 4) /* the opener sent something after the answer, so it is where it says */
#define TB_CTF_ONE_SIDED (1u << 6) /* SERVICE: the backend's node answers the client by itself */
#define TB_CTF_NAMED (1u << 7) /* INGRESS: another node has named the frontend */
#define TB_CTF_BY_STACK (1u << 11) /* the node's stack led it here, perhaps translated: answers go back through it */

struct tb_ct {
	__u64 expires_ns; /* CLOCK_MONOTONIC */
	__u64 created_ns;
	__u64 packets[2]; /* original, reply */
	__u64 bytes[2];
	__u64 reported_ns[2];
	__u32 identity; /* of the peer: source for INGRESS, destination for EGRESS */
	__u32 rev_nat;  /* 0: not translated */
	__u32 policy_id;
	__u32 policy_revision; /* the allow is valid while the policy row has this revision */
	__u32 backend;         /* SERVICE; EGRESS: number of the service that the pod's socket asked for */
	__u32 ifindex;
	__u16 endpoint_id;
	__u16 flags;
	__u8 tcp_seen[2];
	__be16 backend_port;         /* with backend_addr. SERVICE: whom the number meant when it was chosen */
	union tb_addr backend_addr;  /* EGRESS, if there is a number: the frontend, for events alone */
};

struct tb_nat {
	__u64 created_ns;
	union tb_addr addr; /* NAT_OUT: the new source; NAT_IN: the original source */
	__be16 port;
	__u16 flags; /* TB_CTF_*; NAT_IN only, as is expires_ns */
	__u32 rev_nat;
	__u64 expires_ns;
	__u8 spare[8];
};

/* tb_policy flags */
#define TB_POL_INGRESS (1u << 0) /* ingress is enforced: what the normal tier leaves unsaid is dropped */
#define TB_POL_EGRESS (1u << 1)
#define TB_POL_AUDIT (1u << 2)   /* what would be dropped passes, and is told */

/* Tiers, asked in the order admin, normal, baseline. Zero is what rows had before there were tiers. */
#define TB_TIER_NORMAL 0
#define TB_TIER_ADMIN 1
#define TB_TIER_BASELINE 2

/* Shapes: which fields of an entry are set; the bit is 1 << shape. */
#define TB_SHAPE_ID 1
#define TB_SHAPE_PROTO 2
#define TB_SHAPE_PORT 4 /* only with PROTO; the whole port */

/*
 * What entries of a tier there are, so that only those are asked for. Of ports by prefix, widths has bit n - 1 for n low bits
 * of the port left open (1..15), and bit 16 + n - 1 for such entries with an identity.
 */
struct tb_policy {
	__u32 flags;
	__u32 shapes_ingress; /* of the normal tier: bitmap over the eight shapes */
	__u32 shapes_egress;
	__u32 revision; /* grows when an allow may have disappeared */
	__u32 widths[2]; /* of the normal tier, by direction */
	__u32 admin[4];  /* shapes by direction, widths by direction */
	__u32 baseline[4];
	__u32 spare[2];
};

struct tb_rule_key {
	__u32 policy_id;
	__u32 identity; /* 0: any */
	__be16 port;    /* 0: any. Of ICMP type << 8 | code */
	__u8 proto;     /* 0: any */
	__u8 dir;       /* 0 ingress, 1 egress */
	__u8 tier;      /* TB_TIER_* */
	__u8 open_bits; /* so many low bits of the port are zero here and match anything, 0..15 */
	__u16 pad0;
};

/* tb_rule flags; neither: allow */
#define TB_RULE_DENY (1u << 0)
#define TB_RULE_PASS (1u << 1) /* ask the next tier */

struct tb_rule {
	__u32 flags;
	__u32 cookie;
	__u32 priority; /* 0..0xFFFFFE, the smaller the more urgent */
	__u32 spare;
};

struct tb_frag_key {
	union tb_addr src;
	union tb_addr dst;
	__u32 id;
	__u8 proto;
	__u8 pad0[3];
};

struct tb_frag {
	__be16 sport;
	__be16 dport;
};

struct tb_metric_key {
	__u16 reason; /* 0: forwarded */
	__u16 dir;    /* 0 ingress, 1 egress */
};

/* A DROP or NOTE in the sources, by direction. */
struct tb_site_key {
	__u16 site;
	__u16 dir;
};

struct tb_metric {
	__u64 packets;
	__u64 bytes;
};

#define TB_EV_DROP 1
#define TB_EV_TRACE 4
#define TB_EV_VERDICT 5

/* tb_event flags */
#define TB_EVF_REPLY (1u << 0)
#define TB_EVF_NEW (1u << 1)
#define TB_EVF_ENCRYPTED (1u << 2)
#define TB_EVF_IPV6 (1u << 3)
#define TB_EVF_RELATED (1u << 4)
#define TB_EVF_TRANSLATED (1u << 5) /* orig_dst and orig_dport are set */
#define TB_EVF_EGRESS (1u << 6)
#define TB_EVF_AUDITED (1u << 7) /* a policy in audit mode would have dropped it; reason tells why */

struct tb_event {
	__u16 version;
	__u8 type;
	__u8 point;  /* observation point, Cilium's numbers */
	__u8 reason; /* drop reason, Cilium's numbers; 0 if forwarded */
	__u8 proto;
	__u16 site; /* file id << 11 | line; 0 if forwarded */
	__u64 time_ns; /* CLOCK_MONOTONIC */
	union tb_addr src;
	union tb_addr dst;
	union tb_addr orig_dst;
	__u32 src_identity;
	__u32 dst_identity;
	__be16 sport;
	__be16 dport;
	__be16 orig_dport;
	__u16 flags;
	__u16 src_endpoint;
	__u16 dst_endpoint;
	__u32 ifindex;
	__u32 rev_nat;
	__u32 length;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 hook; /* the observation point where its program began: tells which it is */
	__u32 cookie;
	__u16 error; /* why a map was not written, an errno; 0: that is not the reason */
	__u8 match;  /* what the entry that decided has, TB_MATCH_* */
	__u8 pad0;
	__u32 pad1;
};

/* Match types, Cilium's numbers. */
#define TB_MATCH_NONE 0
#define TB_MATCH_ID 1
#define TB_MATCH_ID_PORT 2
#define TB_MATCH_PORT 3
#define TB_MATCH_ALL 4
#define TB_MATCH_ID_PROTO 5
#define TB_MATCH_PROTO 6

/* An event with the packet as it came in: length bytes follow, of a frame, or of IP where the device has no link layer. */
struct tb_capture {
	struct tb_event event;
	union tb_addr tunnel_src; /* FROM_OVERLAY: the outer source and the key */
	__u32 tunnel_id;
	__u32 mark;
	__u32 gso_size;
	__u16 length;
	__u16 pad0;
};

#define TB_CAPTURED 128

/* Marks: magic in 0x1F00. */
#define TB_MARK_MASK 0x1F00u
#define TB_MARK_KEYED 0x0F00u      /* the tunnel key is set already */
#define TB_MARK_JUDGED 0x0A00u     /* on its way into a pod by the interface's queue */
#define TB_MARK_IDENTITY 0x0B00u   /* a pod's, by its queue and the stack; identity: upper half 15..0, low byte 23..16 */
#define TB_MARK_FORWARDED 0x0300u  /* a pod's or a client's, under an address of the node */
#define TB_MARK_DECRYPTED 0x0D00u  /* came out of WireGuard */
#define TB_MARK_CIPHERTEXT 0x1E00u /* set on WireGuard's own socket */

/* Drop reasons, Cilium's numbers. */
#define TB_DROP_INVALID_SOURCE 132
#define TB_DROP_POLICY 133
#define TB_DROP_INVALID 134
#define TB_DROP_CT_INVALID_HDR 135
#define TB_DROP_FRAG_NEEDED 136
#define TB_DROP_UNKNOWN_L3 139
#define TB_DROP_WRITE_ERROR 141
#define TB_DROP_UNKNOWN_L4 142
#define TB_DROP_NO_TUNNEL_KEY 147
#define TB_DROP_CT_CREATE 155
#define TB_DROP_UNKNOWN_TARGET 150
#define TB_DROP_UNROUTABLE 151
#define TB_DROP_INVALID_EXTHDR 156
#define TB_DROP_NO_SERVICE 158
#define TB_DROP_NO_TUNNEL_ENDPOINT 160
#define TB_DROP_HORIZON 162
#define TB_DROP_UNKNOWN_CT 163
#define TB_DROP_NAT_NO_MAPPING 167
#define TB_DROP_NAT_PROTO 168
#define TB_DROP_FIB 169
#define TB_DROP_ENCAP_PROHIBITED 170
#define TB_DROP_UNKNOWN_SENDER 172
#define TB_DROP_FRAG_NOT_FOUND 175
#define TB_DROP_FORBIDDEN_ICMP6 176
#define TB_DROP_NOT_IN_RANGE 177
#define TB_DROP_POLICY_DENY 181
#define TB_DROP_NO_EGRESS_GATEWAY 194
#define TB_DROP_UNENCRYPTED 195
#define TB_DROP_TTL_EXCEEDED 196
#define TB_DROP_RATE 198
#define TB_DROP_HOST_NOT_READY 202
#define TB_DROP_EP_NOT_READY 203
#define TB_DROP_NO_EGRESS_IP 204
#define TB_DROP_NO_DEVICE 206

/* Observation points, Cilium's numbers. */
#define TB_POINT_TO_ENDPOINT 0
#define TB_POINT_TO_HOST 2
#define TB_POINT_TO_STACK 3
#define TB_POINT_TO_OVERLAY 4
#define TB_POINT_FROM_ENDPOINT 5
#define TB_POINT_FROM_HOST 7
#define TB_POINT_FROM_OVERLAY 9
#define TB_POINT_FROM_NETWORK 10
#define TB_POINT_TO_NETWORK 11
#define TB_POINT_FROM_CRYPTO 12
#define TB_POINT_TO_CRYPTO 13

_Static_assert(sizeof(union tb_addr) == 16, "tb_addr");
_Static_assert(sizeof(struct tb_config) == 160, "tb_config");
_Static_assert(__builtin_offsetof(struct tb_config, internal4) == 40, "tb_config.internal4");
_Static_assert(sizeof(struct tb_iface) == 64, "tb_iface");
_Static_assert(__builtin_offsetof(struct tb_iface, mac) == 48, "tb_iface.mac");
_Static_assert(sizeof(struct tb_rate_key) == 8, "tb_rate_key");
_Static_assert(sizeof(struct tb_rate) == 16, "tb_rate");
_Static_assert(sizeof(struct tb_endpoint) == 8, "tb_endpoint");
_Static_assert(sizeof(struct tb_lpm_key) == 20, "tb_lpm_key");
_Static_assert(sizeof(struct tb_prefix) == 12, "tb_prefix");
_Static_assert(sizeof(struct tb_node) == 32, "tb_node");
_Static_assert(sizeof(struct tb_egw_key) == 36, "tb_egw_key");
_Static_assert(sizeof(struct tb_egw) == 32, "tb_egw");
_Static_assert(sizeof(struct tb_service_key) == 24, "tb_service_key");
_Static_assert(sizeof(struct tb_service) == 24, "tb_service");
_Static_assert(sizeof(struct tb_range_key) == 24, "tb_range_key");
_Static_assert(sizeof(struct tb_front_key) == 24, "tb_front_key");
_Static_assert(sizeof(struct tb_affinity_key) == 24, "tb_affinity_key");
_Static_assert(sizeof(struct tb_affinity) == 32, "tb_affinity");
_Static_assert(sizeof(struct tb_member_key) == 12, "tb_member_key");
_Static_assert(sizeof(struct tb_backend) == 24, "tb_backend");
_Static_assert(sizeof(struct tb_sock_key) == 32, "tb_sock_key");
_Static_assert(sizeof(struct tb_sock) == 40, "tb_sock");
_Static_assert(sizeof(struct tb_rev_nat) == 24, "tb_rev_nat");
_Static_assert(sizeof(struct tb_tuple) == 40, "tb_tuple");
_Static_assert(sizeof(struct tb_ct) == 112, "tb_ct");
_Static_assert(__builtin_offsetof(struct tb_ct, identity) == 64, "tb_ct.identity");
_Static_assert(sizeof(struct tb_nat) == 48, "tb_nat");
_Static_assert(sizeof(struct tb_policy) == 64, "tb_policy");
_Static_assert(sizeof(struct tb_rule_key) == 16, "tb_rule_key");
_Static_assert(sizeof(struct tb_rule) == 16, "tb_rule");
_Static_assert(sizeof(struct tb_frag_key) == 40, "tb_frag_key");
_Static_assert(sizeof(struct tb_frag) == 4, "tb_frag");
_Static_assert(sizeof(struct tb_metric_key) == 4, "tb_metric_key");
_Static_assert(sizeof(struct tb_metric) == 16, "tb_metric");
_Static_assert(sizeof(struct tb_site_key) == 4, "tb_site_key");
_Static_assert(sizeof(struct tb_event) == 112, "tb_event");
_Static_assert(sizeof(struct tb_capture) == 144, "tb_capture");
_Static_assert(__builtin_offsetof(struct tb_event, src_identity) == 64, "tb_event.src_identity");

#endif
