//! Named scenarios of `cilium connectivity test`: policies are added, questions asked in both families, and the policies
//! taken away.
//!
//! A scenario first asks without its policies what they shall deny: it must be answered, or the denial would prove
//! nothing. Then it waits until the agents show the policies in force, and asks all questions at once. [`acceptance`]
//! lists every scenario there is and its state; `docs/acceptance.md` is made of it.

pub mod acceptance;
mod counters;
mod covered;
mod finals;
mod force;
mod list;

use futures_util::StreamExt;

use super::ask::{Ask, By, Denial, Origin, Peer, PodRef, Protocol, Target};
use super::check::{CheckResult, Failure, Family};
use super::context::Context;
use super::inventory::Inventory;
pub(super) use counters::Packets;
pub use covered::{COVERED, Covered};
pub use finals::Final;
use force::InForce;
pub use list::SCENARIOS;

/// Before the name of a pod whose node is meant.
pub const HOST_OF: &str = "host of ";

/// Questions asked at once; each costs processes in the lab.
const AT_ONCE: usize = 8;

/// What a scenario is made of. Pods without a namespace are of `demo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// As in Cilium's list.
    pub name: &'static str,
    /// The policies; every name begins with `scenario`.
    pub manifest: &'static str,
    /// Whom the policies are about: pods, and with [`HOST_OF`] before them their nodes.
    pub subjects: &'static [&'static str],
    /// What is asked.
    pub questions: &'static [Question],
}

impl Plan {
    /// Whether its policies deny nothing: what can fail is then what is counted.
    fn allows_all(&self) -> bool {
        self.name == "allow-all-with-metrics-check"
    }
}

/// A request, and whether it must be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// From where.
    pub from: Asker,
    /// To where.
    pub to: Asked,
    /// Why it is not answered; `None` = it is.
    pub denied: Option<Denial>,
    /// Pods by one of whose nodes it leaves the mesh, so that the target sees that node; none: it sees the asker.
    pub gateways: &'static [&'static str],
}

impl Question {
    /// Whether it goes otherwise without the policies.
    #[must_use]
    pub const fn can_fail(&self) -> bool {
        self.denied.is_some() || !self.gateways.is_empty()
    }
}

/// Where a question comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// A pod.
    Pod(&'static str),
    /// The node of a pod.
    HostOf(&'static str),
    /// The client outside.
    Outside,
}

/// Where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A port of a pod.
    Pod(&'static str, Protocol, u16),
    /// A port of the pod of that name in another cluster.
    OtherCluster(&'static str, Protocol, u16),
    /// A port of the client outside.
    World(Protocol, u16),
    /// A port of the node of a pod.
    HostOf(&'static str, Protocol, u16),
}

/// A plan in one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// What.
    pub plan: &'static Plan,
    /// Where.
    pub cluster: String,
}

/// Rules about prefixes that must take nodes: only the lab's last cluster has `policy.cidr_match: [nodes]`.
const ABOUT_NODES: [&str; 3] =
    ["pod-to-controlplane-host-cidr", "pod-to-k8s-on-controlplane-cidr", "pod-to-node-cidrpolicy"];

/// Every scenario with the name of its check, the clusters in turn.
#[must_use]
pub fn all(inventory: &Inventory) -> Vec<(String, Scenario)> {
    let last = inventory.clusters.keys().next_back();
    let clusters = inventory.clusters.keys().cycle();
    let of = |(plan, in_turn): (&'static Plan, &String)| {
        let fixed = last.filter(|_| ABOUT_NODES.contains(&plan.name));
        let cluster = fixed.unwrap_or(in_turn).clone();
        (format!("scenario/{}/{cluster}", plan.name), Scenario { plan, cluster })
    };
    SCENARIOS.iter().zip(clusters).map(of).collect()
}

impl Scenario {
    /// Runs it.
    ///
    /// # Errors
    /// The first answer, flow event or state that is not as expected.
    pub async fn run(&self, context: &Context) -> CheckResult {
        context.cluster(&self.cluster)?;
        // The order is the same for all, so nobody waits for another who waits for it.
        let others =
            self.plan.questions.iter().any(|question| matches!(question.to, Asked::OtherCluster(..)));
        let mut alone = Vec::new();
        for (_, scene) in context.scenes.iter().filter(|(name, _)| others || **name == self.cluster) {
            alone.push(scene.lock().await);
        }
        let otherwise = self.asks(context, Question::can_fail, false)?;
        if otherwise.is_empty() && !self.plan.allows_all() {
            let what = format!("a question of {} that is denied or led elsewhere", self.plan.name);
            return Err(Failure::new(what, "none: it could not fail", "its plan"));
        }
        let open = self.ask_all(context, "without its policies", otherwise).await?;
        let policies = InForce::put(context, self).await?;
        let judged = self.judge(context).await;
        let gone = policies.take_away(context, self).await;
        let judged = judged?;
        gone?;
        Ok(vec![format!("{open} requests answered without the policies, {judged} as expected with them")])
    }

    /// Asks under the policies. Where all is allowed, the counters of the datapath must have noticed.
    async fn judge(&self, context: &Context) -> Result<usize, Failure> {
        let before =
            if self.plan.allows_all() { Some(Packets::read(context, &self.cluster).await?) } else { None };
        let asks = self.asks(context, |_| true, true)?;
        let judged = self.ask_all(context, "with its policies", asks).await?;
        if let Some(before) = before {
            Packets::read(context, &self.cluster).await?.forwarded_more_than(&before, judged)?;
        }
        Ok(judged)
    }

    fn asks(
        &self,
        context: &Context,
        wanted: impl Fn(&Question) -> bool,
        in_force: bool,
    ) -> Result<Vec<(String, Ask)>, Failure> {
        let mut out = Vec::new();
        for question in self.plan.questions.iter().filter(|question| wanted(question)) {
            for family in Family::BOTH {
                let ask = self.ask(context, question, family, in_force)?;
                out.push((format!("{:?} -> {:?} {family}", question.from, question.to), ask));
            }
        }
        Ok(out)
    }

    fn ask(
        &self,
        context: &Context,
        question: &Question,
        family: Family,
        in_force: bool,
    ) -> Result<Ask, Failure> {
        let pod = |cluster: &str, name: &str| PodRef { cluster: cluster.to_owned(), key: key(name) };
        let host = |name: &str| Ok(context.pod(&self.cluster, &key(name))?.node.clone());
        let (from, peer) = match question.from {
            Asker::Pod(name) => (Origin::Pod(pod(&self.cluster, name)), Peer::Asker),
            Asker::HostOf(name) => (Origin::Host(host(name)?), Peer::AskingNode),
            Asker::Outside => (Origin::Client, Peer::Asker),
        };
        let (to, protocol) = match question.to {
            Asked::Pod(name, protocol, port) => (Target::Pod(pod(&self.cluster, name), port), protocol),
            Asked::OtherCluster(name, protocol, port) => {
                let other = context.inventory.other(&self.cluster);
                let other = other.ok_or_else(|| Failure::new("a second cluster", "none", "lab.yaml"))?;
                (Target::Pod(pod(&other.name, name), port), protocol)
            }
            Asked::World(protocol, port) => (Target::Client(port), protocol),
            Asked::HostOf(name, protocol, port) => (Target::Host(host(name)?, port), protocol),
        };
        let by = question.denied.filter(|_| in_force).map_or(By::Target, By::Nobody);
        let gateways = question.gateways.iter().copied().filter(|_| in_force).map(host);
        let gateways: Result<Vec<String>, Failure> = gateways.collect();
        let gateways = gateways?;
        let peer = if gateways.is_empty() { peer } else { Peer::Gateway };
        let prefixes = self.plan.manifest.contains("CIDR") || self.plan.manifest.contains("ipBlock");
        Ok(Ask { from, to, protocol, family, count: 1, by, peer, prefixes, gateways })
    }

    /// Asks all at once; how many there were.
    async fn ask_all(
        &self,
        context: &Context,
        when: &str,
        asks: Vec<(String, Ask)>,
    ) -> Result<usize, Failure> {
        let count = asks.len();
        let check = format!("scenario/{}", self.plan.name);
        let results = futures_util::stream::iter(asks).map(|(what, ask)| {
            let check = &check;
            async move { (what, ask.run(context, check).await) }
        });
        let results: Vec<_> = results.buffer_unordered(AT_ONCE).collect().await;
        let wrong: Vec<_> =
            results.into_iter().filter_map(|(what, result)| Some((what, result.err()?))).collect();
        let Some((what, first)) = wrong.first() else { return Ok(count) };
        let expected = format!("{when}, {what}: {}", first.expected);
        let others: Vec<_> = wrong.iter().skip(1).map(|(what, _)| what.as_str()).collect();
        let got = format!("{}; of {count} also wrong: {others:?}", first.got);
        Err(Failure::new(expected, got, first.look.clone()))
    }
}

/// `NAMESPACE/NAME` of a pod.
fn key(name: &str) -> String {
    if name.contains('/') { name.to_owned() } else { format!("demo/{name}") }
}
