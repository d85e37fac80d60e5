//! The policy of the node itself goes to the programs when the datapath has it.

use super::drive::{Applied, Driver};
use std::sync::Arc;
use tombolo_base::table::Table;
use tombolo_ebpf::Datapath;
use tombolo_policy::compile::HOST_ENDPOINT;
use tombolo_policy::{EndpointPolicy, PolicyRow};

/// The number to write: `None` while nothing is planned, or what is planned is not in place yet. Until then the policy of
/// an earlier life holds.
fn number(planned: Option<&EndpointPolicy>, in_place: impl Fn(u32) -> bool) -> Option<u32> {
    planned.map(|row| row.policy).filter(|policy| *policy == 0 || in_place(*policy))
}

/// Follows what is planned until cancelled.
pub(crate) async fn follow(
    driver: Driver,
    planned: Table<EndpointPolicy>,
    policies: Applied<PolicyRow>,
    datapath: Arc<Datapath>,
) {
    let mut changes = planned.changes();
    let mut written = None;
    loop {
        let changed = policies.changed();
        let row = planned.snapshot().get(&HOST_ENDPOINT).cloned();
        let wanted = number(row.as_ref(), |policy| policies.get(&policy).is_some());
        if let Some(number) = wanted.filter(|number| written != Some(*number)) {
            match datapath.set_host_policy(number) {
                Ok(()) => written = Some(number),
                Err(error) => tracing::error!(
                    %error, number, "the node's policy is not in force; it is tried again with the next change of policies"
                ),
            }
        }
        tokio::select! {
            () = driver.cancel.cancelled() => return,
            _ = changes.next() => {}
            () = changed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_base::source::Source;

    #[test]
    fn a_policy_is_named_when_it_is_there() {
        let row = |policy| EndpointPolicy { source: Source::Planner, endpoint: HOST_ENDPOINT, policy };
        assert_eq!(number(None, |_| true), None, "nothing is planned: what is there stays");
        assert_eq!(number(Some(&row(4)), |_| false), None);
        assert_eq!(number(Some(&row(4)), |policy| policy == 4), Some(4));
        assert_eq!(number(Some(&row(0)), |_| false), Some(0));
    }
}
