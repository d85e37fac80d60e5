//! Which pods the datapath opens its hooks for: endpoints that have an identity, and whose policy and ways out of the mesh
//! are in place.

use super::drive::{Applied, Driver};
use super::egress;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_base::source::Source;
use tombolo_base::table::{NoIndex, Row, Table, Writer};
use tombolo_kubernetes::PodRow;
use tombolo_policy::{EndpointPolicy, PolicyRow};
use tombolo_topology::{EgressRow, EndpointRow, EndpointState, Shaping};

/// Desired: a pod's interface as the datapath has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct InterfaceRow {
    /// Interface index of the host's end.
    pub(crate) ifindex: u32,
    /// Endpoint number.
    pub(crate) endpoint: u16,
    /// Addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// MAC of the pod's end.
    pub(crate) mac: [u8; 6],
    /// MAC of the host's end.
    pub(crate) host_mac: [u8; 6],
    /// Identity; 0 until allocated.
    pub(crate) identity: u32,
    /// Policy; 0 = no restriction.
    pub(crate) policy: u32,
    /// Whether the hook is open.
    pub(crate) ready: bool,
    /// What its traffic is limited to.
    pub(crate) shaping: Shaping,
    /// Whether its packets must not pass by the queues of the interface.
    pub(crate) queued: bool,
}

impl Row for InterfaceRow {
    type Key = u32;
    type Index = NoIndex;
    const TABLE: &'static str = "interfaces";
    fn key(&self) -> u32 {
        self.ifindex
    }
    fn source(&self) -> &Source {
        &Source::Local
    }
    fn columns() -> &'static [&'static str] {
        &["IFINDEX", "ENDPOINT", "IDENTITY", "POLICY", "READY", "EGRESS-MBIT", "INGRESS-MBIT"]
    }
    fn cells(&self) -> Vec<String> {
        vec![
            self.ifindex.to_string(),
            self.endpoint.to_string(),
            self.identity.to_string(),
            self.policy.to_string(),
            self.ready.to_string(),
            megabits(self.shaping.egress),
            megabits(self.shaping.ingress),
        ]
    }
}

/// A rate for people.
fn megabits(bytes_per_sec: Option<u64>) -> String {
    bytes_per_sec.map_or_else(|| "-".to_owned(), |rate| format!("{}", rate as f64 * 8.0 / 1e6))
}

/// The interface row of one endpoint, or `None` while there is nothing to attach to.
fn interface(
    endpoint: &EndpointRow,
    policy: Option<&EndpointPolicy>,
    in_place: bool,
    shaping: Shaping,
) -> Option<InterfaceRow> {
    if endpoint.state == EndpointState::Deleting || endpoint.ifindex == 0 {
        return None;
    }
    let identity = endpoint.identity.map_or(0, |id| id.0);
    Some(InterfaceRow {
        ifindex: endpoint.ifindex,
        endpoint: endpoint.id,
        addresses: endpoint.addresses.clone(),
        mac: endpoint.mac,
        host_mac: endpoint.host_mac,
        identity,
        policy: policy.map_or(0, |row| row.policy),
        ready: identity != 0 && policy.is_some() && in_place,
        shaping,
        queued: endpoint.queued,
    })
}

/// The row to have after `before`: an open hook of the same pod stays as it is until the next row is open as well, or at least
/// its policy is in place: only its ways out of the mesh are still those of before.
fn keep_open(row: InterfaceRow, before: Option<&InterfaceRow>, policed: bool) -> InterfaceRow {
    let same = |before: &&InterfaceRow| {
        before.endpoint == row.endpoint && before.addresses == row.addresses && before.mac == row.mac
    };
    match before.filter(same) {
        Some(before) if before.ready && policed => InterfaceRow { ready: true, ..row },
        Some(before) if before.ready && !row.ready => before.clone(),
        _ => row,
    }
}

/// What the rows are made of.
pub(crate) struct Inputs {
    /// This node's pods.
    pub(crate) endpoints: Table<EndpointRow>,
    /// Their policies.
    pub(crate) policies: Table<EndpointPolicy>,
    /// Pods of the manifests, whose annotations limit them; `None`: they do not.
    pub(crate) pods: Option<Table<PodRow>>,
}

/// Keeps the interface table in step with endpoints, policies and pods until cancelled.
///
/// An open hook stays open: while an endpoint's next policy is not in place yet it keeps the one before, also one that
/// an `earlier` life left.
pub(crate) async fn plan(
    driver: Driver,
    inputs: Inputs,
    in_place: Applied<PolicyRow>,
    (egress_rows, egress_held): (Table<EgressRow>, Applied<EgressRow>),
    earlier: BTreeMap<u32, InterfaceRow>,
    out: Writer<InterfaceRow>,
) {
    let Inputs { endpoints, policies, pods } = inputs;
    let (mut endpoint_changes, mut policy_changes) = (endpoints.changes(), policies.changes());
    let mut egress_changes = egress_rows.changes();
    let mut pod_changes = pods.as_ref().map(Table::changes);
    loop {
        // Before the looks below: what comes in between is not missed.
        let (taken_over, leaving) = (in_place.changed(), egress_held.changed());
        let (endpoint_rows, policy_rows) = (endpoints.snapshot(), policies.snapshot());
        let ways = egress_rows.snapshot();
        let pod_rows = pods.as_ref().map(Table::snapshot);
        let shaping = |endpoint: &EndpointRow| {
            let pod = pod_rows.as_ref()?.get(&(endpoint.namespace.clone(), endpoint.pod.clone()))?;
            Some(pod.shaping)
        };
        out.commit(|txn| {
            let mut wanted = Vec::new();
            for endpoint in endpoint_rows.iter() {
                let policy = policy_rows.get(&endpoint.id);
                let policed = endpoint.identity.is_some()
                    && policy.is_some_and(|row| row.policy == 0 || in_place.get(&row.policy).is_some());
                let ready = policed && egress::is_in_place(endpoint, &ways, &egress_held);
                let shaping = shaping(endpoint).unwrap_or_default();
                let Some(row) = interface(endpoint, policy, ready, shaping) else { continue };
                let before = txn.current().get(&row.ifindex).or_else(|| earlier.get(&row.ifindex));
                wanted.push(keep_open(row, before, policed));
            }
            txn.replace_source(&Source::Local, wanted);
            if let Some(state) = endpoint_rows.source_state(&Source::Local) {
                txn.set_source(&Source::Local, state);
            }
        });
        let pods_changed = async {
            match &mut pod_changes {
                Some(changes) => drop(changes.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = endpoint_changes.next() => {}
            _ = policy_changes.next() => {}
            _ = egress_changes.next() => {}
            () = pods_changed => {}
            () = taken_over => {}
            () = leaving => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_shuts_no_open_hook() {
        let shut = InterfaceRow {
            ifindex: 7,
            endpoint: 3,
            addresses: vec!["10.1.1.5".parse().unwrap()],
            mac: [2; 6],
            host_mac: [4; 6],
            identity: 65_836,
            policy: 0,
            ready: false,
            shaping: Shaping::default(),
            queued: false,
        };
        let left = InterfaceRow { policy: 9, ready: true, ..shut.clone() };
        assert_eq!(keep_open(shut.clone(), Some(&left), false), left, "its policy is not planned yet");
        let planned = InterfaceRow { policy: 4, ready: true, ..shut.clone() };
        assert_eq!(keep_open(planned.clone(), Some(&left), true), planned);
        let another = InterfaceRow { mac: [6; 6], ..left };
        assert_eq!(
            keep_open(shut.clone(), Some(&another), false),
            shut,
            "the interface's number is another pod's now"
        );
        assert_eq!(keep_open(shut.clone(), None, false), shut);
        let other = InterfaceRow { policy: 9, ready: false, ..planned.clone() };
        let kept = keep_open(other.clone(), Some(&planned), true);
        assert_eq!(kept, InterfaceRow { ready: true, ..other }, "its ways are late, its policy is not");
    }
}
