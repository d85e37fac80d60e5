//! What carries sessions, against BIRD, FRR, GoBGP and OpenBGPD: TCP MD5, GTSM, hops, IPv4 over IPv6 next hops, unnumbered links, listen ranges. Needs root.

#![cfg(test)]

mod daemons;
mod families;
mod neighbours;
mod security;
mod speaker;

use std::time::Duration;

use tombolo_tests::netns::{Namespace, eventually, join};

const SPEAKER: &str = env!("CARGO_BIN_EXE_bgp_speaker");
const OURS: [&str; 2] = ["10.1.1.0/24", "2001:db8:e::/64"];
const THEIRS: [&str; 2] = ["198.51.100.0/24", "2001:db8:100::/48"];
/// Longer than any attempt of either side: a session that is not there by then is refused, not late.
const REFUSED_FOR: Duration = Duration::from_secs(8);

fn namespaces() -> [Namespace; 2] {
    let pair = [Namespace::new("tspk"), Namespace::new("tpeer")];
    join(&pair[0], &["10.77.0.1/24", "fd00:77::1/64"], &pair[1], &["10.77.0.2/24", "fd00:77::2/64"]);
    pair
}

const BOTH_LEARNED: [(&str, &str); 2] =
    [("198.51.100.0/24", "10.77.0.2"), ("2001:db8:100::/48", "fd00:77::2")];

fn in_kernel(namespace: &Namespace, prefix: &str, via: &str) {
    eventually(&format!("{prefix} via {via} is in the kernel table"), || {
        let family = if prefix.contains(':') { "-6" } else { "-4" };
        let text = namespace.ip(&[family, "route", "show", prefix]);
        if text.contains(via) {
            Ok(())
        } else {
            Err(format!("{text} of {}", namespace.ip(&[family, "route"])))
        }
    });
}
