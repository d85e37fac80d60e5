/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Connection tracking in two tables: flows nobody has answered yet in an LRU, so that a flood of them only
 * evicts its like; answered ones in a plain hash that user space collects. Anybody can make a server answer by a SYN or a
 * question under a false address, so a flow is only answered when its opener has spoken again. One question and one
 * answer, as of DNS, stay in the LRU.
 */
#ifndef TB_CT_H
#define TB_CT_H

#include "pkt.h"
#include "event.h"

#define TB_FILE_ID 2

#define LIFE_TCP (8000 * SEC_NS)
#define LIFE_SYN (60 * SEC_NS)
#define LIFE_HALF_CLOSED (120 * SEC_NS)
#define LIFE_CLOSING (10 * SEC_NS)
#define LIFE_OTHER (60 * SEC_NS)

/* A SERVICE entry sees only the client's packets, so the client's FIN closes it. */
INLINE int ct_closed(const struct tb_ct *ct, __u8 kind)
{
	__u16 both = TB_CTF_CLOSING_ORIG | (kind == TB_CT_SERVICE ? 0 : TB_CTF_CLOSING_REPLY);

	return (ct->flags & both) == both;
}

/* How many entries have moved from the half-open to the established ones. */
static volatile __u32 tb_moves;

/* Whether an entry counts for this packet: not an expired one, nor a closed one that a SYN reopens. */
INLINE int ct_counts(const struct tb_pkt *p, const struct tb_ct *ct)
{
	int reopen = p->tproto == TB_TCP && !p->is_error && (p->tcp_flags & (TB_SYN | TB_ACK)) == TB_SYN;

	return ct->expires_ns >= p->now && !(reopen && ct_closed(ct, p->key.kind));
}

/* The entry of p->key. absent: it was looked for among the established ones in this run already. */
INLINE struct tb_ct *ct_find(struct tb_pkt *p, __u8 *half, int absent)
{
	struct tb_ct *ct = absent ? 0 : bpf_map_lookup_elem(&tb_ct, &p->key);

	*half = 0;
	if (ct && ct_counts(p, ct))
		return ct;
	p->stale = ct != 0;
	*half = 1;
	ct = bpf_map_lookup_elem(&tb_ct_half, &p->key);
	if (ct)
		return ct_counts(p, ct) ? ct : 0;
	/* Another CPU may have moved it between the two looks. */
	if (p->stale || tb_moves == p->moves)
		return 0;
	ct = bpf_map_lookup_elem(&tb_ct, &p->key);
	*half = !ct;
	return ct;
}

INLINE struct tb_ct *ct_get(struct tb_pkt *p, __u8 *half)
{
	return ct_find(p, half, 0);
}

/*
 * The entry of p->key, if that is an established flow with no end in sight, so that none in the other direction can be
 * alive beside it; p->absent says whether there is no such entry at all. Looked for first at the end that more likely
 * opened the flow, which spares the look-ups of all that it is not: clients have the higher ports, and the asked end of
 * an echo has port 0.
 */
INLINE struct tb_ct *ct_running(struct tb_pkt *p)
{
	struct tb_ct *ct;

	p->absent = 0;
	if (p->is_error || bswap16(p->key.sport) <= bswap16(p->key.dport))
		return 0;
	ct = bpf_map_lookup_elem(&tb_ct, &p->key);
	p->absent = !ct;
	if (!ct || ct->expires_ns < p->now || ct->flags & (TB_CTF_CLOSING_ORIG | TB_CTF_CLOSING_REPLY))
		return 0;
	return ct;
}

/* Whether a flow with these signs of life belongs to the established ones. */
INLINE int ct_lasts(__u16 flags)
{
	__u16 needed = TB_CTF_REPLIED | TB_CTF_CONFIRMED;

	return (flags & needed) == needed;
}

/* Whether it moves to them. Whoever forges a client's packets shows all that is seen of a one-sided flow. */
INLINE int ct_moves(__u16 flags)
{
	return ct_lasts(flags) && !(flags & TB_CTF_ONE_SIDED);
}

INLINE __u64 ct_life(__u8 proto, __u16 flags)
{
	__u16 both = TB_CTF_CLOSING_ORIG | TB_CTF_CLOSING_REPLY;

	if (proto != TB_TCP)
		return LIFE_OTHER;
	if ((flags & both) == both)
		return LIFE_CLOSING;
	if (flags & both)
		return LIFE_HALF_CLOSED;
	return ct_lasts(flags) ? LIFE_TCP : LIFE_SYN;
}

/*
 * Moves the entry of p->key to the established table. If that is full it stays where it is. The LRU may have given the
 * element to another flow since it was found: then it is not under this key any more.
 */
INLINE void ct_promote(struct tb_pkt *p, const struct tb_ct *ct)
{
	p->ct = *ct;
	if (bpf_map_lookup_elem(&tb_ct_half, &p->key) != ct)
		return;
	if (bpf_map_update_elem(&tb_ct, &p->key, &p->ct, BPF_ANY) < 0)
		return;
	/* Before it is missing there. */
	__sync_fetch_and_add(&tb_moves, 1);
	bpf_map_delete_elem(&tb_ct_half, &p->key);
}

/* What the packet says about the life of a connection of which `known` is known. way: 0 opening, 1 answering. */
INLINE __u16 ct_signs(const struct tb_pkt *p, int way, __u16 known)
{
	__u16 flags = way ? TB_CTF_REPLIED : 0;
	int opens = p->tproto == TB_TCP && p->tcp_flags & (TB_SYN | TB_RST);

	if (!way && known & TB_CTF_REPLIED && !opens)
		flags |= TB_CTF_CONFIRMED;
	if (p->tproto != TB_TCP)
		return flags;
	/* Its answers go elsewhere: a client that goes on has had one. */
	if (!way && known & TB_CTF_ONE_SIDED && !opens)
		flags |= TB_CTF_REPLIED;
	if (p->tcp_flags & TB_FIN)
		flags |= way ? TB_CTF_CLOSING_REPLY : TB_CTF_CLOSING_ORIG;
	if (p->tcp_flags & TB_RST)
		flags |= TB_CTF_CLOSING_ORIG | TB_CTF_CLOSING_REPLY;
	return flags;
}

/* Both ends may close at the same moment on two CPUs; the flags share a word with the endpoint's id. */
INLINE void ct_mark(struct tb_ct *ct, __u16 flags)
{
	__sync_fetch_and_or((__u32 *)&ct->endpoint_id, (__u32)flags << 16);
}

/*
 * Counts the packet, keeps the entry alive, decides whether an event is due. way: 0 opening, 1 answering. Returns the
 * flow's flags.
 */
INLINE __u16 ct_touch(struct tb_pkt *p, struct tb_ct *ct, __u8 half, int way)
{
	struct tb_config *cfg = tb_cfg();
	__u16 flags;

	/* An error speaks of a flow without being part of it. */
	if (p->is_error || !cfg)
		return 0;
	if (p->tproto == TB_TCP) {
		__u8 seen = p->tcp_flags & (TB_SYN | TB_FIN | TB_RST);

		if (seen & ~ct->tcp_seen[way]) {
			ct->tcp_seen[way] |= seen;
			p->report = 1;
		}
	}
	flags = ct->flags | ct_signs(p, way, ct->flags);
	/* Programs before this one asked for no confirmation. */
	if (!half)
		flags |= TB_CTF_CONFIRMED;
	if (flags != ct->flags)
		ct_mark(ct, flags);
	__sync_fetch_and_add(&ct->packets[way], 1);
	__sync_fetch_and_add(&ct->bytes[way], p->len);
	ct->expires_ns = p->now + ct_life(p->tproto, flags);
	if (p->now - ct->reported_ns[way] >= cfg->report_interval_ns) {
		ct->reported_ns[way] = p->now;
		p->report = 1;
	}
	if (half && ct_moves(flags))
		ct_promote(p, ct);
	return flags;
}

/*
 * A client may use one port for two frontends of one backend, or for the backend itself: behind the translation these are
 * one flow. Its answers belong to the frontend that was used last. Of a flow whose frontend another node names only the
 * packets do that can be its first.
 */
INLINE void ct_renumber(struct tb_pkt *p, struct tb_ct *ct, __u32 rev_nat)
{
	int names = p->frag != TB_FRAG_LATER && (p->tproto != TB_TCP || p->tcp_flags & TB_SYN);

	if (p->is_error || (!rev_nat && ct->flags & TB_CTF_NAMED && !names))
		return;
	if (ct->rev_nat != rev_nat)
		ct->rev_nat = rev_nat;
	if (p->fronted && !(ct->flags & TB_CTF_NAMED))
		ct_mark(ct, TB_CTF_NAMED);
}

/* Writes a new entry for p->key from p->ct, whose own fields the caller has set after ct_blank(). */
INLINE int ct_create(struct tb_pkt *p)
{
	p->ct.created_ns = p->now;
	p->ct.expires_ns = p->now + ct_life(p->tproto, 0);
	p->ct.packets[0] = 1;
	p->ct.bytes[0] = p->len;
	p->ct.reported_ns[0] = p->now;
	p->ct.tcp_seen[0] = p->tcp_flags & (TB_SYN | TB_FIN | TB_RST);
	if (p->stale) {
		bpf_map_delete_elem(&tb_ct, &p->key);
		p->stale = 0;
	}
	p->fresh = 1;
	p->report = 1;
	if (bpf_map_update_elem(&tb_ct_half, &p->key, &p->ct, BPF_ANY) < 0)
		return DROP(p, TB_DROP_CT_CREATE, "half-open conntrack entry could not be written", "raise datapath.maps.conntrack");
	return TB_GO;
}

INLINE void ct_blank(struct tb_pkt *p)
{
	__builtin_memset(&p->ct, 0, sizeof(p->ct));
}

/*
 * The flow behind the translation is answered, or its server closes it: the client's memory of its backend, which sees
 * the client's packets alone, must live as long. orig_dst is the frontend. Called with the first answers and with a
 * closing one, or when a new service entry meets a flow that was answered before.
 */
INLINE void service_answered(struct tb_pkt *p, const union tb_addr *client, __be16 port, __u16 signs)
{
	struct tb_ct *ct;
	__u16 flags;
	int half = 1;

	if (p->is_error || !p->translated)
		return;
	key_set(&p->key, client, &p->orig_dst, port, p->orig_dport, p->tproto, TB_CT_SERVICE);
	ct = bpf_map_lookup_elem(&tb_ct_half, &p->key);
	if (!ct && signs & (TB_CTF_CLOSING_ORIG | TB_CTF_CLOSING_REPLY)) {
		half = 0;
		ct = bpf_map_lookup_elem(&tb_ct, &p->key);
	}
	if (!ct)
		return;
	flags = ct->flags | signs;
	if (flags == ct->flags)
		return;
	/* Where the backend is on another node nothing else here knows that it answered. */
	if (!(ct->flags & TB_CTF_REPLIED))
		p->report = 1;
	ct_mark(ct, flags);
	ct->expires_ns = p->now + ct_life(p->tproto, flags);
	if (half && ct_moves(flags))
		ct_promote(p, ct);
}

/* Gives an answer the frontend's address as source. */
INLINE void unmask(struct tb_pkt *p, __u32 rev_nat)
{
	struct tb_rev_nat *rev = bpf_map_lookup_elem(&tb_rev_nat, &rev_nat);

	if (!rev)
		return;
	p->rev_nat = rev_nat;
	p->nsrc = rev->addr;
	p->nsport = rev->port;
	p->orig_dst = rev->addr;
	p->orig_dport = rev->port;
	p->translated = 1;
}

#undef TB_FILE_ID
#endif
