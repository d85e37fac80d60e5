/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* What user space learns: counters of everything, events of what is new, dropped or due. */
#ifndef TB_EVENT_H
#define TB_EVENT_H

#include "pkt.h"

INLINE void count(struct tb_pkt *p, __u32 bytes)
{
	struct tb_metric_key key = { .reason = p->reason, .dir = p->dir };
	struct tb_metric *m = bpf_map_lookup_elem(&tb_metrics, &key);
	struct tb_metric first = { .packets = 1, .bytes = bytes };

	if (!m) {
		bpf_map_update_elem(&tb_metrics, &key, &first, BPF_NOEXIST);
		return;
	}
	m->packets += 1;
	m->bytes += bytes;
}

/* A function of its own so that the event's layout is in the BTF, where the loader compares it. */
static __attribute__((noinline)) int fill_event(struct __sk_buff *skb, struct tb_pkt *p, struct tb_event *e, __u32 type)
{
	__u16 flags = 0;

	flags |= p->reply ? TB_EVF_REPLY : 0;
	flags |= p->fresh ? TB_EVF_NEW : 0;
	flags |= p->encrypted ? TB_EVF_ENCRYPTED : 0;
	flags |= p->family == 6 ? TB_EVF_IPV6 : 0;
	flags |= p->is_error ? TB_EVF_RELATED : 0;
	flags |= p->translated || p->named ? TB_EVF_TRANSLATED : 0;
	flags |= p->dir ? TB_EVF_EGRESS : 0;
	e->version = TB_EVENT_VERSION;
	e->type = type;
	e->point = p->point;
	e->reason = p->reason;
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
	e->ifindex = skb->ifindex;
	e->rev_nat = p->rev_nat;
	e->length = p->len;
	e->tcp_flags = p->tcp_flags;
	e->icmp_type = p->icmp_type;
	e->icmp_code = p->icmp_code;
	e->pad0 = 0;
	e->cookie = p->cookie;
	return 0;
}

GLOBAL int tb_emit(struct __sk_buff *skb, __u32 type)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_event *e;

	if (!p)
		return 0;
	e = bpf_ringbuf_reserve(&tb_events, sizeof(*e), 0);
	if (!e) {
		__u32 zero = 0;
		__u64 *lost = bpf_map_lookup_elem(&tb_lost, &zero);

		if (lost)
			*lost += 1;
		return 0;
	}
	fill_event(skb, p, e, type);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* The end of every run. A drop without a reason was counted before (too big, and no answer could be made). */
INLINE int finish(struct __sk_buff *skb, struct tb_pkt *p, int act)
{
	struct tb_config *cfg;

	if (act == TC_ACT_SHOT) {
		if (p->reason) {
			count(p, skb->len);
			tb_emit(skb, TB_EV_DROP);
		}
		return act;
	}
	p->reason = 0;
	p->site = 0;
	count(p, skb->len);
	if (p->fresh && p->policed) {
		cfg = tb_cfg();
		if (cfg && cfg->flags & TB_CFG_VERDICTS)
			tb_emit(skb, TB_EV_VERDICT);
	}
	if (p->report)
		tb_emit(skb, TB_EV_TRACE);
	return act;
}

#endif
