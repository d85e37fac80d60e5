/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What user space learns: counters of everything, events of what is new, dropped or due. */
#ifndef TB_EVENT_H
#define TB_EVENT_H

#include "pkt.h"

#define COUNT(map, key, size)                                                          \
	do {                                                                           \
		struct tb_metric *m_ = bpf_map_lookup_elem(map, key);                  \
		struct tb_metric first_ = { .packets = 1, .bytes = size };             \
                                                                                       \
		if (m_) {                                                              \
			m_->packets += 1;                                              \
			m_->bytes += first_.bytes;                                     \
		} else {                                                               \
			bpf_map_update_elem(map, key, &first_, BPF_NOEXIST);           \
		}                                                                      \
	} while (0)

INLINE void count_site(const struct tb_pkt *p, __u16 site, __u32 bytes)
{
	struct tb_site_key key = { .site = site, .dir = p->dir };

	COUNT(&tb_sites, &key, bytes);
}

/* What is no drop, but should not happen often: counted by its place in the sources, whose why and remedy build.rs reads. */
#define NOTE(p, why, remedy) count_site(p, (TB_FILE_ID << 11) | __LINE__, p->len)

INLINE void count(struct tb_pkt *p, __u32 bytes)
{
	struct tb_metric_key key = { .reason = p->reason, .dir = p->dir };

	COUNT(&tb_metrics, &key, bytes);
	if (p->reason)
		count_site(p, p->site, bytes);
}

/* A function of its own so that the event's layout is in the BTF, where the loader compares it. */
static __attribute__((noinline)) int fill_event(TB_CTX *skb, struct tb_pkt *p, struct tb_event *e, __u32 type)
{
	__u16 flags = 0;

	flags |= p->reply ? TB_EVF_REPLY : 0;
	flags |= p->fresh ? TB_EVF_NEW : 0;
	flags |= p->encrypted ? TB_EVF_ENCRYPTED : 0;
	flags |= p->family == 6 ? TB_EVF_IPV6 : 0;
	flags |= p->is_error ? TB_EVF_RELATED : 0;
	flags |= p->translated || p->named ? TB_EVF_TRANSLATED : 0;
	flags |= p->dir ? TB_EVF_EGRESS : 0;
	flags |= p->audited ? TB_EVF_AUDITED : 0;
	e->version = TB_EVENT_VERSION;
	e->type = type;
	e->point = p->point;
	e->reason = p->audited && !p->reason ? p->audited : p->reason;
	e->proto = p->is_error ? p->proto : p->tproto;
	e->site = p->site;
	e->time_ns = bpf_ktime_get_ns();
	e->src = p->esrc;
	e->dst = p->edst;
	e->orig_dst = p->orig_dst;
	e->src_identity = p->src_identity;
	e->dst_identity = p->dst_identity;
	e->sport = p->esport;
	e->dport = p->edport;
	e->orig_dport = p->orig_dport;
	e->flags = flags;
	e->src_endpoint = p->src_endpoint;
	e->dst_endpoint = p->dst_endpoint;
	e->ifindex = ctx_ifindex(skb);
	e->rev_nat = p->rev_nat;
	e->length = p->len;
	e->tcp_flags = p->tcp_flags;
	e->icmp_type = p->icmp_type;
	e->icmp_code = p->icmp_code;
	e->hook = p->hook;
	e->cookie = p->cookie;
	e->error = p->error;
	e->match = p->match;
	e->pad0 = 0;
	e->pad1 = 0;
	return 0;
}

INLINE int allowed(struct tb_allowance *allowance, __u64 now, __u64 per_sec)
{
	if (now - allowance->since_ns >= SEC_NS) {
		allowance->since_ns = now;
		allowance->used = 0;
	}
	return allowance->used++ < per_sec;
}

/* By interface, so that one that is flooded, or floods, leaves the ring to the others. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__type(key, __u32);
	__type(value, struct tb_allowance);
	__uint(max_entries, 4096);
} tb_event_room SEC(".maps");

INLINE int may_tell(const struct tb_pkt *p, __u32 ifindex)
{
	struct tb_config *cfg = tb_cfg();
	struct tb_allowance first = { .since_ns = p->now, .used = 1 };
	struct tb_allowance *allowance;

	if (!cfg || !cfg->events_per_sec)
		return 1;
	allowance = bpf_map_lookup_elem(&tb_event_room, &ifindex);
	if (allowance)
		return allowed(allowance, p->now, cfg->events_per_sec);
	bpf_map_update_elem(&tb_event_room, &ifindex, &first, BPF_NOEXIST);
	return 1;
}

INLINE int lost(__u32 why)
{
	__u64 *count = bpf_map_lookup_elem(&tb_lost, &why);

	if (count)
		*count += 1;
	return 0;
}

struct captured {
	struct tb_capture head;
	__u8 data[TB_CAPTURED];
};

/* A function of its own for the same reason. */
static __attribute__((noinline)) int fill_capture(TB_CTX *skb, struct tb_pkt *p, struct tb_capture *c)
{
	c->tunnel_src = p->tunnel_src;
	c->tunnel_id = p->tunnel_id;
	c->mark = ctx_mark(skb);
	c->gso_size = ctx_gso_size(skb);
	c->pad0 = 0;
	return 0;
}

/* The packet is still as it came in: what is dropped was not rewritten. */
INLINE int emit_captured(TB_CTX *skb, struct tb_pkt *p, __u32 type)
{
	struct captured *c = bpf_ringbuf_reserve(&tb_events, sizeof(*c), 0);
	__u32 length = ctx_len(skb);

	if (!c)
		return lost(TB_LOST_FULL);
	fill_event(skb, p, &c->head.event, type);
	fill_capture(skb, p, &c->head);
	if (length > TB_CAPTURED)
		length = TB_CAPTURED;
	if (!length || bpf_skb_load_bytes(skb, 0, c->data, length) < 0)
		length = 0;
	c->head.length = length;
	bpf_ringbuf_submit(c, 0);
	return 0;
}

GLOBAL int tb_emit(TB_CTX *skb, __u32 type)
{
	struct tb_config *cfg = tb_cfg();
	struct tb_pkt *p = tb_pkt();
	struct tb_event *e;

	if (!p || !cfg)
		return 0;
	if (!may_tell(p, ctx_ifindex(skb)))
		return lost(TB_LOST_LIMITED);
	/* What exceeds a rate was rewritten before. */
	if (p->reason != TB_DROP_RATE && p->reason != TB_DROP_HORIZON && cfg->flags & (type == TB_EV_DROP ? TB_CFG_CAPTURE : TB_CFG_CAPTURE_ALL))
		return emit_captured(skb, p, type);
	e = bpf_ringbuf_reserve(&tb_events, sizeof(*e), 0);
	if (!e)
		return lost(TB_LOST_FULL);
	fill_event(skb, p, e, type);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The end of every run. A drop without a reason was counted before (too big, and no answer could be made). */
INLINE int finish(TB_CTX *skb, struct tb_pkt *p, int act)
{
	struct tb_config *cfg = tb_cfg();
	__u8 point = p->point;

	if (act == TC_ACT_SHOT) {
		if (p->reason) {
			count(p, ctx_len(skb));
			tb_emit(skb, TB_EV_DROP);
		}
		return act;
	}
	p->reason = 0;
	p->site = 0;
	count(p, ctx_len(skb));
	if (!cfg)
		return act;
	if (p->fresh && p->policed && cfg->flags & TB_CFG_VERDICTS)
		tb_emit(skb, TB_EV_VERDICT);
	/* What was not parsed is no packet of IP, or nobody's to tell. */
	if (cfg->aggregation == TB_AGG_NONE && p->family && p->hook != point) {
		p->point = p->hook;
		tb_emit(skb, TB_EV_TRACE);
		p->point = point;
	}
	if (p->report || (cfg->aggregation && p->family))
		tb_emit(skb, TB_EV_TRACE);
	return act;
}

#endif
