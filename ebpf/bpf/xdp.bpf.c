/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Services from outside before the kernel makes a socket buffer: what the uplink receives for a backend on another node that
 * is reached by the uplink itself, without tunnel and encryption, and the answers of SNATed flows to their clients. All
 * else is passed on untouched to from_uplink, which would do the same; so nothing is written or counted before it is
 * clear that the packet leaves from here.
 */
#define TB_XDP
#include "parse.h"
#include "nat.h"
#include "endpoint.h"
#include "rewrite.h"

#define TB_FILE_ID 14
#define TB_AF_INET 2
#define TB_AF_INET6 10

INLINE struct tb_pkt *begin(const struct tb_config *cfg)
{
	struct tb_pkt *p = tb_pkt();

	if (!p)
		return 0;
	__builtin_memset(p, 0, __builtin_offsetof(struct tb_pkt, key));
	p->now = bpf_ktime_get_ns() + cfg->clock_offset_ns;
	p->l2 = 1;
	p->l3_off = TB_ETH_HLEN;
	p->point = TB_POINT_FROM_NETWORK;
	p->hook = TB_POINT_FROM_NETWORK;
	/* The other programs have a count of their own, so it tells nothing: always look twice. */
	p->moves = ~tb_moves;
	return p;
}

/* ndst is reached by the uplink in clear, and what leaves fits. */
INLINE int in_clear(const struct tb_pkt *p, const struct tb_config *cfg)
{
	__u32 index = p->node, plain = p->pfx_flags & TB_PFX_SKIP_TUNNEL;
	struct tb_node *node = index ? bpf_map_lookup_elem(&tb_nodes, &index) : 0;

	if (p->where != TB_AWAY || p->ttl <= 1 || p->pfx_flags & TB_PFX_STRICT)
		return 0;
	if (cfg->flags & TB_CFG_ENCRYPT && (p->pfx_flags & TB_PFX_ENCRYPT || (node && node->flags & TB_NODE_ENCRYPT)))
		return 0;
	if (!node || plain)
		return !index || plain;
	return node->path != TB_PATH_OVERLAY && (!node->mtu || p->seg_len + p->room <= node->mtu);
}

/* Whether the routing table leads from src to ndst by the interface it came from, with a neighbour that is known. */
INLINE int back_out(struct xdp_md *ctx, struct tb_pkt *p, const union tb_addr *src, struct bpf_fib_lookup *fib)
{
	fib->ifindex = ctx->ingress_ifindex;
	fib->tot_len = p->seg_len + p->room;
	fib->l4_protocol = p->proto;
	if (p->family == 4) {
		fib->family = TB_AF_INET;
		fib->ipv4_src = src->w[3];
		fib->ipv4_dst = p->ndst.w[3];
	} else {
		fib->family = TB_AF_INET6;
		__builtin_memcpy(fib->ipv6_src, src->b, 16);
		__builtin_memcpy(fib->ipv6_dst, p->ndst.b, 16);
	}
	return bpf_fib_lookup(ctx, fib, sizeof(*fib), 0) == BPF_FIB_LKUP_RET_SUCCESS && fib->ifindex == ctx->ingress_ifindex;
}

/* The backend that tb_service() will lead the packet to; one_sided if its flow is. */
INLINE struct tb_backend *foreseen(struct tb_pkt *p, const struct tb_service *svc, int *fresh)
{
	struct tb_affinity_key who = client_of(p, svc);
	struct tb_backend *b = 0;
	struct tb_ct *ct;
	__u32 id = 0;
	__u8 half;

	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_CT_SERVICE);
	ct = ct_get(p, &half);
	p->stale = 0;
	if (ct)
		b = still(ct->backend, &ct->backend_addr, ct->backend_port);
	*fresh = !b;
	if (b) {
		p->one_sided = !!(ct->flags & TB_CTF_ONE_SIDED);
		return b;
	}
	if (svc->affinity_secs)
		b = met_before(&who, svc, TB_SCOPE_EXTERNAL, p->now, &id);
	return b ? b : hashed(p, svc, &id);
}

/* 1: it is for a service whose backend is reached from here. */
GLOBAL int tb_foresee(struct xdp_md *ctx)
{
	struct bpf_fib_lookup fib = {};
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	struct tb_service_key key = {};
	struct tb_service *svc;
	struct tb_backend *b;
	int fresh, direct;

	if (!p || !cfg)
		return 0;
	key.addr = p->dst;
	key.port = p->dport;
	key.proto = p->tproto;
	svc = bpf_map_lookup_elem(&tb_services, &key);
	if (!svc || !svc->maglev_size || p->fronted)
		return 0;
	if (svc->flags & TB_SVC_SOURCE_RANGE && !in_ranges(&p->src, svc->rev_nat))
		return 0;
	b = foreseen(p, svc, &fresh);
	if (!b || (p->tproto == TB_UDP && b->port == bswap16(cfg->vxlan_port)))
		return 0;
	p->ndst = b->addr;
	if (tb_locate() != TB_GO)
		return 0;
	direct = p->one_sided || (fresh && may_be_direct(p, cfg));
	if (direct && may_open(p))
		p->room = p->family == 4 ? TB_DSR4_ROOM : TB_DSR6_ROOM;
	return in_clear(p, cfg) && back_out(ctx, p, direct ? &p->src : internal_addr(cfg, p->family), &fib);
}

/* 1: it answers an SNATed flow whose client is reached from here. */
GLOBAL int tb_foresee_answer(struct xdp_md *ctx)
{
	struct bpf_fib_lookup fib = {};
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	struct tb_rev_nat *rev;
	struct tb_nat *nat;
	__u32 number;
	__u8 half;

	if (!p || !cfg)
		return 0;
	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_NAT_IN);
	nat = nat_get(p, &half);
	if (!nat || nat->expires_ns < p->now || !nat->rev_nat)
		return 0;
	number = nat->rev_nat;
	p->ndst = nat->addr;
	rev = bpf_map_lookup_elem(&tb_rev_nat, &number);
	if (!rev || tb_locate() != TB_GO)
		return 0;
	return in_clear(p, cfg) && back_out(ctx, p, &rev->addr, &fib);
}

/* Forgets what was foreseen. */
INLINE void unforesee(struct tb_pkt *p)
{
	p->ndst = p->dst;
	p->room = 0;
	p->one_sided = 0;
}

/* It is translated and judged: out again where it came in. */
GLOBAL int tb_turn(struct xdp_md *ctx)
{
	struct bpf_fib_lookup fib = {};
	struct tb_pkt *p = tb_pkt();
	__u8 macs[12];
	int act;

	if (!p)
		return TC_ACT_SHOT;
	if (!back_out(ctx, p, &p->nsrc, &fib))
		return DROP(p, TB_DROP_FIB, "the route to the backend or client changed under the packet", "none, if it does not last; ip route get its address on the node");
	act = tb_rewrite(ctx);
	if (act != TB_GO)
		return act;
	act = hop(ctx, p);
	if (act == TB_GO && p->room)
		act = tb_name_frontend(ctx);
	if (act != TB_GO)
		return act;
	__builtin_memcpy(macs, fib.dmac, 6);
	__builtin_memcpy(macs + 6, fib.smac, 6);
	if (bpf_skb_store_bytes(ctx, 0, macs, sizeof(macs), 0) < 0)
		return DROP(p, TB_DROP_WRITE_ERROR, "the Ethernet header could not be written", "report it with a capture of the packet");
	p->point = TB_POINT_TO_NETWORK;
	return TB_GO;
}

/* An outside client's packet to a backend elsewhere, as outside_client() of from_uplink. */
INLINE int to_service(struct xdp_md *ctx, struct tb_pkt *p, struct tb_config *cfg)
{
	int act = tb_service(TB_SCOPE_EXTERNAL);

	if (act != 1)
		return act;
	act = tb_locate();
	if (act != TB_GO)
		return act;
	if (answered_there(p, cfg)) {
		if (may_open(p))
			p->room = p->family == 4 ? TB_DSR4_ROOM : TB_DSR6_ROOM;
		return tb_turn(ctx);
	}
	act = tb_snat();
	return act == TB_GO ? tb_turn(ctx) : act;
}

/* TC_ACT_OK: passed on as it came. TB_GO: it leaves. Else dropped. */
INLINE int uplink_hears(struct xdp_md *ctx, struct tb_pkt *p, struct tb_config *cfg)
{
	if (tb_parse(ctx) != TB_GO || p->nd || p->is_error || p->frag)
		return TC_ACT_OK;
	if (p->tproto != TB_TCP && p->tproto != TB_UDP)
		return TC_ACT_OK;
	if (addr_multicast(&p->dst, p->family) || addr_multicast(&p->src, p->family))
		return TC_ACT_OK;
	tb_identify(1);
	if (p->local_source)
		return TC_ACT_OK;
	if (addr_eq(&p->dst, internal_addr(cfg, p->family)) && tb_foresee_answer(ctx)) {
		unforesee(p);
		if (tb_unsnat() != 1 || tb_locate() != TB_GO)
			return TC_ACT_OK;
		return tb_turn(ctx);
	}
	unforesee(p);
	if (tb_locate() != TB_GO || p->where == TB_POD)
		return TC_ACT_OK;
	/* The tunnel's packets are no service's. */
	if (p->where == TB_HOST && p->tproto == TB_UDP && p->dport == bswap16(cfg->vxlan_port))
		return TC_ACT_OK;
	if (!tb_foresee(ctx))
		return TC_ACT_OK;
	unforesee(p);
	return to_service(ctx, p, cfg);
}

SEC("xdp") int xdp_uplink(struct xdp_md *ctx)
{
	struct tb_config *cfg = tb_cfg();
	struct tb_pkt *p;
	__be16 type = ctx_protocol(ctx);
	int act;

	if (!cfg || !(cfg->flags & TB_CFG_READY) || (type != bswap16(TB_ETH_P_IP) && type != bswap16(TB_ETH_P_IPV6)))
		return XDP_PASS;
	p = begin(cfg);
	if (!p)
		return XDP_PASS;
	act = uplink_hears(ctx, p, cfg);
	if (act == TC_ACT_OK)
		return XDP_PASS;
	if (act == TB_GO) {
		finish(ctx, p, TC_ACT_OK);
		return XDP_TX;
	}
	finish(ctx, p, TC_ACT_SHOT);
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
