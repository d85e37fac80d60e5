//! What was decided on the way of a packet, step by step: for `tombolo why`.

use crate::ct::Kind;
use crate::lb::Scope;
use crate::node::Node;
use crate::outcome::Reason;
use crate::packet::{Socket, Tuple};
use crate::verdict::{Question, Rule};
use std::net::IpAddr;

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The packet was read.
    Read {
        /// Its flow; of an ICMP error, the flow that it speaks of, as if it were an answer.
        flow: Tuple,
        /// It is an ICMP error.
        error: bool,
        /// Why it cannot be tracked.
        broken: Option<Reason>,
    },
    /// Who sent it.
    Sender {
        /// Its address.
        address: IpAddr,
        /// The identity that it goes by.
        identity: u32,
        /// Whether it may send under its address here.
        believed: bool,
    },
    /// Whether a flow is known.
    Flow {
        /// About whom.
        kind: Kind,
        /// In the direction in which it was opened.
        flow: Tuple,
        /// Whether it is, and whether it is still half-open.
        known: Option<bool>,
        /// The packet goes against it.
        answer: bool,
    },
    /// Whether the destination is a service's.
    Service {
        /// What was asked for.
        frontend: Socket,
        /// By whom.
        scope: Scope,
        /// The backend it is led to.
        backend: Option<Socket>,
        /// It was chosen for an earlier packet of the flow.
        remembered: bool,
    },
    /// Where the receiver is.
    Place {
        /// Its address after translation.
        address: IpAddr,
        /// There.
        place: Place,
        /// Its identity.
        identity: u32,
    },
    /// A policy was asked.
    Policy {
        /// Its number; 0: none, or the node or the pod itself asks.
        policy: u32,
        /// What it was asked.
        question: Question,
        /// What it said.
        verdict: Result<(), Reason>,
        /// The entry that decided.
        rule: Option<Rule>,
    },
    /// The source becomes the node's.
    Snat {
        /// The client.
        from: Socket,
        /// Its stand-in.
        to: Socket,
    },
    /// An answer to such a flow goes back to the client.
    Unsnat {
        /// The client.
        to: Socket,
    },
    /// An answer gets its frontend's address as source.
    Unmask {
        /// The frontend.
        frontend: Socket,
    },
}

/// Where somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The node itself.
    Host,
    /// A pod of this node, by ifindex.
    Pod(u32),
    /// Elsewhere, at this node's number; 0: nobody's.
    Away(u32),
}

impl Node {
    /// From now on decisions are written down.
    pub fn listen(&mut self) {
        self.story.replace(Some(Vec::new()));
    }

    /// What was written down since.
    pub fn told(&mut self) -> Vec<Step> {
        self.story.take().unwrap_or_default()
    }

    pub(crate) fn tell(&self, step: impl FnOnce() -> Step) {
        if let Some(story) = self.story.borrow_mut().as_mut() {
            story.push(step());
        }
    }
}
