/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The packet at hand. One per CPU in a scratch map: the programs run with bottom halves off and never
 * nest on a CPU, nothing of it lives longer than one run, and no tail call carries it over.
 *
 * Decide first, write last: functions change only the n* fields; tb_rewrite() brings them into the
 * packet when all checks have passed. So an ICMP error can be built from the packet as its sender knows it.
 */
#ifndef TB_PKT_H
#define TB_PKT_H

#include "addr.h"
#include "maps.h"

#define TC_ACT_OK 0
#define TC_ACT_UNSPEC (-1)
#define TC_ACT_REDIRECT 7
#define TC_ACT_SHOT 2
#define TB_GO (-1) /* no verdict yet */

#define TB_ETH_P_IP 0x0800
#define TB_ETH_P_IPV6 0x86DD
#define TB_ETH_HLEN 14

#define TB_ICMP 1
#define TB_ICMPV6 58

#define TB_FIN 0x01
#define TB_SYN 0x02
#define TB_RST 0x04
#define TB_ACK 0x10

#define TB_ID_HOST 1
#define TB_ID_WORLD 2
#define TB_ID_REMOTE_NODE 6
#define TB_ID_KUBE_APISERVER 7
/* The byte above an identity: of other nodes' addresses that policies tell apart. */
#define TB_SCOPE_NODE 2
#define TB_ID_WORLD4 9 /* in rules alone: packets, flows and events know one world */
#define TB_ID_WORLD6 10

#define TB_AWAY 0 /* not on this node */
#define TB_POD 1
#define TB_HOST 2

#define TB_FRAG_FIRST 1
#define TB_FRAG_LATER 2

struct tb_ip4 {
	__u8 vihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag;
	__u8 ttl;
	__u8 proto;
	__be16 csum;
	__be32 src;
	__be32 dst;
};

struct tb_ip6 {
	__be32 flow;
	__be16 plen;
	__u8 next;
	__u8 hops;
	__u8 src[16];
	__u8 dst[16];
};

/* A flow's way through the SNAT ports: a step of its own, modulo a prime, so that it comes by each of them. */
struct tb_walk {
	__u64 ends; /* when the first of the mappings met ends */
	__u32 start, step, prime;
	__u32 first, range; /* of the ports */
	int claimed;
	__be16 port;
	__u16 pad[3];
};

struct tb_pkt {
	/* The flow's tuple as the packet has it. For an ICMP error it is the tuple of the packet it speaks of,
	 * turned round, as if the error were an ordinary packet of that flow. */
	union tb_addr src, dst;
	union tb_addr nsrc, ndst;  /* after translation */
	union tb_addr esrc, edst;  /* for events: client and backend, whoever translated */
	union tb_addr orig_dst;    /* the frontend, if translated */
	union tb_addr outer_src;   /* source in the IP header */
	union tb_addr front;       /* with front_port: the frontend that the IP header names, if fronted */
	union tb_addr snat_to;     /* what tb_snat() gives as source; zero: the node's internal address */
	__u64 now;
	__be16 sport, dport, nsport, ndport;
	__be16 esport, edport, orig_dport, site;
	__u16 l3_off, l4_off, in_l3, in_l4;
	__u32 len;     /* bytes from the IP header on */
	__u32 seg_len; /* largest IP packet this becomes on the wire (GSO) */
	__u32 src_identity, dst_identity;
	__u32 src_endpoint, dst_endpoint;
	__u32 node, pfx_flags;
	__u32 rev_nat;    /* of this packet's translation, either way */
	__u32 in_rev_nat; /* to be stored in the INGRESS entry: translated at the uplink */
	__u32 out_ifindex;
	__u32 policy_revision, cookie;
	__u32 precedence; /* of the entry that a tier of policy has found; 0: none */
	__u32 vni;
	__u32 moves; /* tb_moves before any look-up */
	__u32 leave_by; /* the interface by which an egress gateway sends it out */
	__u32 pad0;
	__u8 family, proto, tproto, is_error;
	__u8 tcp_flags, ttl, frag, df;
	__u8 icmp_type, icmp_code, nd, l2;
	__u8 where, reply, fresh, report;
	__u8 point, dir, encrypted, loopback;
	__u8 policed, stale, reason, translated;
	__u8 local_source; /* came from the network with a source of this node: TB_POD or TB_HOST */
	__u8 refuse; /* dropped as a service's that takes nothing: the client may be told */
	__u8 audited; /* the reason for which it would have been dropped */
	__u8 untracked; /* judged without being a flow */
	__u8 named;  /* orig_dst and orig_dport are known, but this packet is not translated: its socket was */
	__u8 outsider; /* came from the network, and its source is no node's or pod's of the mesh */
	__u8 one_sided; /* the backend's node answers this flow's client */
	__u8 guessed; /* an error of no known flow, led to the backend that all nodes would choose for its flow */
	__be16 front_port;
	__u8 fronted; /* the IP header names a frontend */
	__u8 room; /* bytes that naming the frontend will take in the IP header; 0: it is not named */
	__u8 absent; /* the flow as the packet has it is not among the established ones */
	__u8 by_tunnel; /* through the tunnel to p->node, whatever that node's path */
	__u8 masked; /* pods' packets leave under the node's address */
	__u8 by_stack; /* an answer of a flow that the node's stack led here */
	__u8 queued;   /* leaves by the queues of its interface */
	__u8 shaped;   /* the sending pod's rate or priority is to be minded */
	__u8 hook;  /* the point where the program began */
	__u8 match; /* what the entry that decided has, TB_MATCH_* */
	__u16 error; /* of a map that could not be written */
	/* From here on not cleared. */
	struct tb_tuple key;
	struct tb_ct ct;
	struct tb_nat nat;
	struct tb_lpm_key lpm;
	__u32 tunnel_id; /* with tunnel_src: of a packet out of the tunnel */
	union tb_addr tunnel_src;
	__u8 buf[144];
	struct tb_egw_key egw;
	__u32 pad2;
	struct tb_walk walk;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct tb_pkt);
	__uint(max_entries, 1);
} tb_scratch SEC(".maps");

INLINE struct tb_pkt *tb_pkt(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tb_scratch, &zero);
}

INLINE int tb_drop(struct tb_pkt *p, __u8 reason, __u16 site)
{
	p->reason = reason;
	p->site = site;
	return TC_ACT_SHOT;
}

/* build.rs reads why and remedy from the source; the site number leads back to the line. */
#define DROP(p, reason, why, remedy) tb_drop(p, reason, (TB_FILE_ID << 11) | __LINE__)

INLINE int addr_multicast(const union tb_addr *a, __u8 family)
{
	if (family == 4)
		return (a->b[12] & 0xf0) == 0xe0 || a->w[3] == 0xffffffff;
	return a->b[0] == 0xff;
}

INLINE void key_set(struct tb_tuple *k, const union tb_addr *src, const union tb_addr *dst,
		    __be16 sport, __be16 dport, __u8 proto, __u8 kind)
{
	k->src = *src;
	k->dst = *dst;
	k->sport = sport;
	k->dport = dport;
	k->proto = proto;
	k->kind = kind;
	k->pad0 = 0;
}

#endif
