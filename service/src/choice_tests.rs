//! Tiers, weights, overflow, hints: tables of cases.

use super::*;
use crate::rows::{Affinity, Protocol, ServiceRow};
use crate::spread::{Spread, tiers as tiers_of};
use std::net::IpAddr;

/// `cluster[:state[:zone]]`, one word a backend; `r` ready, `s` serving, `n` not ready, `p` fails its probe.
fn candidates(text: &str) -> Vec<Candidate> {
    let one = |(n, word): (usize, &str)| {
        let mut parts = word.split(':');
        let (cluster, state, zone) = (parts.next().unwrap(), parts.next().unwrap_or("r"), parts.next());
        let hints: Vec<Arc<str>> = parts.map(Into::into).collect();
        Candidate {
            key: (IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]), 80, Protocol::Tcp),
            cluster: (cluster != "east").then(|| cluster.into()),
            state: match state {
                "s" => BackendState::Serving,
                "n" => BackendState::NotReady,
                _ => BackendState::Ready,
            },
            local_node: state == "l",
            zone: zone.filter(|zone| !zone.is_empty()).map(Into::into),
            for_zones: hints,
            for_nodes: vec![],
            failing: state == "p",
        }
    };
    text.split_whitespace().enumerate().map(one).collect()
}

fn service(affinity: Affinity, tiers: &str, weights: &str, overflow: &str) -> (ServiceRow, Spread) {
    let spread = Spread {
        tiers: if tiers.is_empty() { vec![] } else { Spread::parse_tiers(tiers).unwrap() },
        weights: if weights.is_empty() { BTreeMap::new() } else { Spread::parse_weights(weights).unwrap() },
        overflow: (!overflow.is_empty()).then(|| Spread::parse_overflow(overflow).unwrap()),
        probe: None,
    };
    (ServiceRow { affinity, spread: spread.clone(), ..crate::plan::tests::service() }, spread)
}

/// Percent of the new flows by backend, or why it gets none.
fn chosen(backends: &str, rules: (Affinity, &str, &str, &str), distribution: Option<Distribution>) -> String {
    let (row, spread) = service(rules.0, rules.1, rules.2, rules.3);
    let tiers = tiers_of(&row);
    let rules = Rules { tiers: &tiers, weights: &spread.weights, overflow: spread.overflow, distribution };
    let site = Site { node: "n1".into(), cluster: "east".into(), zone: Some("a".into()) };
    let candidates = candidates(backends);
    let choice = choose(&candidates, &rules, &site);
    let all: f64 = choice.members.iter().map(|member| f64::from(member.weight)).sum();
    let loads: u32 = choice.tiers.iter().map(|tier| u32::from(tier.load)).sum();
    assert!(
        choice.members.is_empty() == (loads == 0) && (loads == 0 || (9_990..=10_000).contains(&loads)),
        "{choice:?}"
    );
    assert_eq!(choice.members.len() + choice.spare.len(), candidates.len(), "each is chosen or told why not");
    let one = |c: &Candidate| {
        let member = choice.members.iter().find(|member| member.key == c.key);
        let why = choice.spare.iter().find(|(key, _)| *key == c.key);
        match (member, why) {
            (Some(member), None) => format!("{:.0}", f64::from(member.weight) * 100.0 / all),
            (None, Some((_, why))) => why.to_string(),
            other => panic!("{other:?}"),
        }
    };
    candidates.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn affinity_is_a_preset_of_tiers() {
    use Affinity::{Local, None, Remote};
    for (backends, affinity, wanted) in [
        ("east west", None, "50 50"),
        ("east:n west", None, "not-ready 100"),
        ("east west", Local, "100 tier-2"),
        ("east west", Remote, "tier-2 100"),
        ("west north", Local, "50 50"),
        ("east", Remote, "100"),
        // Unusable ones do not count as being there.
        ("east:n west", Local, "not-ready 100"),
        ("east:p west", Local, "probe 100"),
        ("east:s west", Local, "serving 100"),
        ("east west:n west:s", Remote, "100 not-ready serving"),
        // Where nobody is ready those that serve answer, of the first tier that has one.
        ("east:s west:s", Local, "100 tier-2"),
        ("east:s west:s", None, "50 50"),
        ("east:s west:p", None, "100 probe"),
        // A node that reaches nobody may itself be what is wrong.
        ("west:p west:p west:n", None, "50 50 not-ready"),
        ("west:n", None, "not-ready"),
    ] {
        assert_eq!(
            chosen(backends, (affinity, "", "", ""), Some(Distribution::Any)),
            wanted,
            "{backends} {affinity:?}"
        );
    }
}

#[test]
fn tiers_weights_and_overflow() {
    let any = Some(Distribution::Any);
    for (backends, tiers, weights, overflow, wanted) in [
        ("east west north", "east,west;north", "", "", "50 50 tier-2"),
        ("east:n west:n north", "east,west;north", "", "", "not-ready not-ready 100"),
        ("east west north", "local;west", "", "", "100 tier-2 no-tier"),
        ("north", "local;west", "", "", "no-tier"),
        ("east west north", "north;*", "", "", "tier-2 tier-2 100"),
        // Weights are the clusters', however many backends each has.
        ("east west west west west", "", "east=80,west=20", "", "80 5 5 5 5"),
        ("east west", "", "local=80,*=20", "", "80 20"),
        ("east west north", "", "east=1,west=1", "", "50 50 weight-0"),
        ("east west", "", "east=0,west=1", "", "weight-0 100"),
        ("east:n west", "", "east=80,west=20", "", "not-ready 100"),
        ("east west north", "east,west;north", "east=3,west=1,north=1", "", "75 25 tier-2"),
        ("west north", "", "east=1", "", "weight-0 weight-0"),
        // Half of the first tier is well: at a threshold of 50 % that is enough, at 100 % the next takes the other half.
        ("east east:n west west", "local;*", "", "50%", "100 not-ready tier-2 tier-2"),
        ("east east:n west west", "local;*", "", "100%", "50 not-ready 25 25"),
        ("east east:n east:n east:n west", "local;*", "", "50%", "50 not-ready not-ready not-ready 50"),
        ("east east:n west west:n north", "east;west;north", "", "100%", "50 not-ready 25 not-ready 25"),
        // All together are short: what there is takes it all.
        ("east east:n west west:n", "east;west", "", "100%", "67 not-ready 33 not-ready"),
        ("east:n west", "local;*", "", "50%", "not-ready 100"),
        // One that terminates is not missing.
        ("east east:s west", "local;*", "", "100%", "100 serving tier-2"),
        ("east:s east:s west:s", "local;*", "", "100%", "50 50 tier-2"),
        ("east east:p west", "local;*", "", "100%", "50 probe 50"),
    ] {
        let got = chosen(backends, (Affinity::None, tiers, weights, overflow), any);
        assert_eq!(got, wanted, "{backends}: {tiers} {weights} {overflow}");
    }
    assert_eq!(
        chosen("east west", (Affinity::Local, "west;*", "", ""), any),
        "tier-2 100",
        "tiers are stronger"
    );
}

#[test]
fn hints_count_when_all_have_some_and_one_is_for_here() {
    use Distribution::{Any, SameNode, SameZone};
    for (backends, weights, distribution, wanted) in [
        ("east:r:a:a east:r:b:b west:r:a:a", "", Some(Any), "50 zone 50"),
        ("east:r:a:a east:r:b:b", "", None, "50 50"),
        ("east:r:a:a east:r:b", "", Some(Any), "50 50"),
        ("east:r:a:b east:r:b:b", "", Some(Any), "50 50"),
        ("east:r:b:a:b east:r:b:b", "", Some(Any), "100 zone"),
        // One that is not usable needs no hints.
        ("east:r:a:a east:r:b:b east:n:b", "", Some(Any), "100 zone not-ready"),
        ("east:r:a east:r:b", "", Some(Any), "50 50"),
        ("east:r:a east:r:b", "", Some(SameZone), "100 zone"),
        ("east:r:a east:r", "", Some(SameZone), "50 50"),
        ("east:r:b east:r:b", "", Some(SameZone), "50 50"),
        ("east:r:a:b east:r:b:a", "", Some(SameZone), "zone 100"),
        ("east:l:a east:r:a", "", Some(SameNode), "100 zone"),
        ("east:r:a east:r:b", "", Some(SameNode), "100 zone"),
        // Each cluster has its weight in whatever zone it is.
        ("east:r:b:b west:r:a:a west:r:b:b", "east=80,west=20", Some(Any), "80 20 zone"),
    ] {
        let got = chosen(backends, (Affinity::None, "", weights, ""), distribution);
        assert_eq!(got, wanted, "{backends} {distribution:?}");
    }
}
