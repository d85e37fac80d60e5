//! Source ports for translations, and who else uses them.

use std::ops::RangeInclusive;

/// Kubernetes' range of node ports, unless its API server was told another.
static NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// What a Kubernetes node listens on: etcd, API server, kubelet and the parts beside it.
static NODE_LISTENS: [RangeInclusive<u16>; 3] = [2379..=2381, 6443..=6443, 10_248..=10_260];
/// The ports that the kernel gives to sockets that ask for none.
const LOCAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The two numbers of the kernel's range.
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

fn overlap(a: &RangeInclusive<u16>, b: &RangeInclusive<u16>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

/// Whose ports are among those for translations, in words.
fn shared(ports: &RangeInclusive<u16>, local: Option<&RangeInclusive<u16>>) -> Vec<String> {
    let text =
        |what: &str, range: &RangeInclusive<u16>| format!("{what} ({}-{})", range.start(), range.end());
    let local =
        local.map(|range| ("those that the kernel gives to sockets, net.ipv4.ip_local_port_range", range));
    let known = [("node ports", &NODE_PORTS)].into_iter().chain(local);
    let listens = NODE_LISTENS.iter().map(|range| ("ports that Kubernetes' own parts listen on", range));
    known
        .chain(listens)
        .filter(|(_, range)| overlap(ports, range))
        .map(|(what, range)| text(what, range))
        .collect()
}

/// Tells whose ports are among those for translations: a packet to such a port may be taken for an answer.
pub(crate) fn tell_shared(ports: &RangeInclusive<u16>) {
    let local = std::fs::read_to_string(LOCAL_RANGE).ok().and_then(|text| parse_range(&text));
    let shared = shared(ports, local.as_ref());
    if !shared.is_empty() {
        tracing::warn!(
            shared = shared.join("; "),
            "datapath.snat_ports {}-{} has ports that others use: connections of the node may lose their answers to \
             translated ones; give a range apart, or move the other one",
            ports.start(),
            ports.end()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_apart_from_all_and_others_are_told() {
        let usual = parse_range("32768\t60999\n").unwrap();
        assert_eq!(shared(&tombolo_ebpf::SNAT_PORTS, Some(&usual)), Vec::<String>::new());
        let proxy = parse_range("1024 65535").unwrap();
        assert_eq!(shared(&tombolo_ebpf::SNAT_PORTS, Some(&proxy)).len(), 1);
        assert_eq!(
            shared(&(10_240..=32_767), Some(&usual)).len(),
            2,
            "the range of before: kubelet and node ports"
        );
        assert_eq!(parse_range("many"), None);
    }
}
