/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The maps. Sizes here are placeholders: user space sets them from its configuration. */
#ifndef TB_MAPS_H
#define TB_MAPS_H

#include "abi.h"
#include "helpers.h"

#define TB_MAP(name, kind, key_type, value_type, size, extra)                                      \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
		__uint(max_entries, size);                                                         \
		__uint(map_flags, extra);                                                          \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                                               \
	} name SEC(".maps")

#define TB_HASH BPF_MAP_TYPE_HASH
#define TB_LRU BPF_MAP_TYPE_LRU_HASH

TB_MAP(tb_config, BPF_MAP_TYPE_ARRAY, __u32, struct tb_config, 1, 0);
TB_MAP(tb_ifaces, TB_HASH, __u32, struct tb_iface, 1024, 0);
TB_MAP(tb_rates, TB_HASH, struct tb_rate_key, struct tb_rate, 3072, BPF_F_NO_PREALLOC);
TB_MAP(tb_endpoints, TB_HASH, union tb_addr, struct tb_endpoint, 2048, 0);
TB_MAP(tb_hosts, TB_HASH, union tb_addr, struct tb_prefix, 16384, BPF_F_NO_PREALLOC);
TB_MAP(tb_prefixes, BPF_MAP_TYPE_LPM_TRIE, struct tb_lpm_key, struct tb_prefix, 16384, BPF_F_NO_PREALLOC);
TB_MAP(tb_nodes, TB_HASH, __u32, struct tb_node, 1024, BPF_F_NO_PREALLOC); /* room for a mesh, mostly used by a few */
TB_MAP(tb_services, TB_HASH, struct tb_service_key, struct tb_service, 4096, 0);
TB_MAP(tb_ranges, BPF_MAP_TYPE_LPM_TRIE, struct tb_range_key, __u32, 4096, BPF_F_NO_PREALLOC);
TB_MAP(tb_fronts, TB_HASH, struct tb_front_key, __u32, 32768, BPF_F_NO_PREALLOC);
TB_MAP(tb_affinity, TB_LRU, struct tb_affinity_key, struct tb_affinity, 16384, 0);
TB_MAP(tb_members, TB_HASH, struct tb_member_key, __u32, 32768, BPF_F_NO_PREALLOC);
TB_MAP(tb_backends, TB_HASH, __u32, struct tb_backend, 8192, 0);
TB_MAP(tb_maglev, BPF_MAP_TYPE_ARRAY, __u32, __u32, 65536, 0);
TB_MAP(tb_sock_rev, TB_LRU, struct tb_sock_key, struct tb_sock, 16384, 0);
TB_MAP(tb_rev_nat, TB_HASH, __u32, struct tb_rev_nat, 4096, 0);
TB_MAP(tb_ct_half, TB_LRU, struct tb_tuple, struct tb_ct, 16384, 0);
TB_MAP(tb_ct, TB_HASH, struct tb_tuple, struct tb_ct, 16384, 0);
TB_MAP(tb_nat_half, TB_LRU, struct tb_tuple, struct tb_nat, 16384, 0);
TB_MAP(tb_nat, TB_HASH, struct tb_tuple, struct tb_nat, 16384, 0);
TB_MAP(tb_snat_full, TB_LRU, struct tb_tuple, __u64, 1024, 0);
TB_MAP(tb_egw, BPF_MAP_TYPE_LPM_TRIE, struct tb_egw_key, struct tb_egw, 16384, BPF_F_NO_PREALLOC);
TB_MAP(tb_unmasked, BPF_MAP_TYPE_LPM_TRIE, struct tb_lpm_key, __u32, 1024, BPF_F_NO_PREALLOC);
TB_MAP(tb_policies, TB_HASH, __u32, struct tb_policy, 1024, 0);
TB_MAP(tb_rules, TB_HASH, struct tb_rule_key, struct tb_rule, 16384, 0);
TB_MAP(tb_frags, TB_LRU, struct tb_frag_key, struct tb_frag, 1024, 0);
TB_MAP(tb_metrics, BPF_MAP_TYPE_PERCPU_HASH, struct tb_metric_key, struct tb_metric, 512, 0);
TB_MAP(tb_sites, BPF_MAP_TYPE_PERCPU_HASH, struct tb_site_key, struct tb_metric, 1024, 0);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tb_events SEC(".maps");

/* Events that nobody got; per CPU. */
#define TB_LOST_FULL 0    /* the ring was full */
#define TB_LOST_LIMITED 1 /* their interface had told enough this second */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 2);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tb_lost SEC(".maps");

/* What has been used in the second that began at since_ns. */
struct tb_allowance {
	__u64 since_ns, used;
};
INLINE struct tb_config *tb_cfg(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&tb_config, &zero);
}

#endif
