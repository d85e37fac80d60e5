//! E1, E2, E8, E9: packets between pods, of one node and of two.

use tombolo_ebpf::{MapSizes, NodePath};
use tombolo_tests::load::Kind;
use tombolo_tests::report::Goal;

use crate::Failure;
use crate::abba::{Comparison, Side, Wanted, serve};
use crate::spaces::{Host, Joined, Ours, sh};

/// Room for the connections of all rounds that are not collected yet.
pub(crate) fn sizes() -> MapSizes {
    MapSizes { conntrack: 262_144, conntrack_half: 65_536, ..MapSizes::default() }
}

/// Rules of the comparison's chain, the last of which takes the client.
const RULES: u32 = 100;

/// The first pod of one host asks the last one of another, or of the same.
pub(crate) fn side<'a>(from: &'a Host, to: &Host) -> Result<Side<'a>, Failure> {
    let client = from.pods.first().ok_or("a host without pods")?;
    let server = to.pods.last().ok_or("a host without pods")?;
    Ok(Side { client: &client.space, target: server.at()? })
}

/// Its server is started.
pub(crate) fn serving(host: Host) -> Result<Host, Failure> {
    let server = host.pods.last().ok_or("a host without pods")?;
    serve(&server.space, server.at()?)?;
    Ok(host)
}

/// Conntrack and a chain as Calico's: known flows pass first, then sets of addresses are asked in turn.
fn chain(host: &Host) {
    let sets = (0..RULES).map(|rule| {
        let client = if rule + 1 == RULES { "add s99 10.1.1.2\n" } else { "" };
        format!("create s{rule} hash:ip\nadd s{rule} 192.0.2.{}\n{client}", rule + 1)
    });
    let rules = (0..RULES).map(|rule| format!("-A pods -m set --match-set s{rule} src -j ACCEPT\n"));
    let (sets, rules): (String, String) = (sets.collect(), rules.collect());
    sh(
        &host.space,
        &format!(
            "ipset restore <<'E'\n{sets}E\niptables-restore <<'E'\n*filter\n:FORWARD DROP\n:pods -\n\
             -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j pods\n{rules}COMMIT\nE\n"
        ),
    );
}

/// Within one node.
pub(crate) fn one_node(comparison: &mut Comparison<'_>) -> Result<(), Failure> {
    let ours = Ours::new(serving(Host::new(1, 2, Joined::Routed))?, sizes())?;
    let plain = serving(Host::new(1, 2, Joined::Routed))?;
    let chained = serving(Host::new(1, 2, Joined::Routed))?;
    chain(&chained);
    let collect = || Ok(ours.datapath.gc().map(drop)?);
    for (id, what, kind, peer, host, goal) in [
        (
            "E1",
            "TCP_RR between pods of a node, policy on",
            Kind::Rr,
            "plain routing",
            &plain,
            Goal::RatioLeast(0.95),
        ),
        (
            "E1-crr",
            "TCP_CRR between pods of a node, policy on",
            Kind::Crr,
            "plain routing",
            &plain,
            Goal::None,
        ),
        (
            "E2",
            "TCP_RR between pods of a node, policy on",
            Kind::Rr,
            "conntrack, 100 ipset rules",
            &chained,
            Goal::RatioLeast(1.15),
        ),
        (
            "E2-crr",
            "TCP_CRR between pods of a node, policy on",
            Kind::Crr,
            "conntrack, 100 ipset rules",
            &chained,
            Goal::None,
        ),
    ] {
        let sides = [side(&ours.host, &ours.host)?, side(host, host)?];
        comparison.row(&Wanted { id, what, kind, peer, goal }, sides, collect)?;
    }
    Ok(())
}

/// Between two nodes.
pub(crate) fn two_nodes(comparison: &mut Comparison<'_>) -> Result<(), Failure> {
    let pair = |joined| -> Result<[Host; 2], Failure> {
        let (one, two) = (Host::new(1, 1, joined), Host::new(2, 1, joined));
        one.wire(&two);
        Ok([one, serving(two)?])
    };
    let ours = |path: NodePath| -> Result<[Ours; 2], Failure> {
        let [one, two] = pair(Joined::Routed)?;
        let pair = [Ours::new(one, sizes())?, Ours::new(two, sizes())?];
        pair.iter().try_for_each(|ours| ours.reach(path))?;
        Ok(pair)
    };
    let [one, two] = ours(NodePath::Overlay)?;
    let bridged = pair(Joined::Bridged)?;
    bridged.iter().for_each(Host::tunnel);
    let [near, far] = &bridged;
    let sides = || -> Result<[Side<'_>; 2], Failure> { Ok([side(&one.host, &two.host)?, side(near, far)?]) };
    let peer = "kernel VXLAN, bridges";
    for (id, what, kind, goal) in [
        ("E8", "TCP_RR through the overlay, policy on", Kind::Rr, Goal::RatioLeast(1.1)),
        ("E8-stream", "TCP_STREAM through the overlay, policy on", Kind::Stream, Goal::RatioLeast(1.0)),
    ] {
        comparison.row(&Wanted { id, what, kind, peer, goal }, sides()?, || Ok(()))?;
    }
    let [one, two] = ours(NodePath::Direct)?;
    let plain = pair(Joined::Routed)?;
    plain.iter().for_each(Host::route);
    let [near, far] = &plain;
    let (what, peer, goal) = ("TCP_STREAM by routes, policy on", "plain routing", Goal::RatioLeast(1.0));
    let wanted = Wanted { id: "E9", what, kind: Kind::Stream, peer, goal };
    comparison.row(&wanted, [side(&one.host, &two.host)?, side(near, far)?], || Ok(()))
}
