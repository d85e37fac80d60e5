/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#include "maps.h"
SEC("classifier") int from_endpoint(struct __sk_buff *skb) { (void)skb; return 0; }
char _license[] SEC("license") = "Dual BSD/GPL";
