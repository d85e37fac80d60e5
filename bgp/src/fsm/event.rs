//! The events of RFC 4271 section 8.1 by name and number, and a record of the transitions they caused.

use std::collections::VecDeque;

use serde::Serialize;

use super::State;

/// Transitions kept for whoever asks.
const HISTORY_MAX: usize = 16;

/// What drives the machine. Events 14 and 15 never change its state: they are decided where connections are admitted. The discriminant is the number RFC 4271 gives the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[non_exhaustive]
pub enum FsmEvent {
    /// The operator starts the peer.
    ManualStart = 1,
    /// The operator stops the peer.
    ManualStop = 2,
    /// The speaker starts the peer, such as after a change of its settings.
    AutomaticStart = 3,
    /// The operator starts the peer, which is to wait for the other side.
    ManualStartPassive = 4,
    /// The speaker starts such a peer.
    AutomaticStartPassive = 5,
    /// The speaker starts a peer that is damped.
    AutomaticStartDamp = 6,
    /// The speaker starts a damped peer that is to wait for the other side.
    AutomaticStartDampPassive = 7,
    /// The speaker ends the session: too many prefixes, BFD, changed settings.
    AutomaticStop = 8,
    /// The time for an attempt to connect, or between two, is over.
    ConnectRetryTimerExpires = 9,
    /// Nothing was heard for the hold time.
    HoldTimerExpires = 10,
    /// A KEEPALIVE is due.
    KeepaliveTimerExpires = 11,
    /// The wait for the other side's OPEN is over.
    DelayOpenTimerExpires = 12,
    /// The rest after an error is over.
    IdleHoldTimerExpires = 13,
    /// A connection comes in from a valid address.
    TcpConnectionValid = 14,
    /// A connection comes in that is not wanted.
    TcpCrInvalid = 15,
    /// Our connection is answered.
    TcpCrAcked = 16,
    /// A connection that came in is complete.
    TcpConnectionConfirmed = 17,
    /// A connection, or the attempt at one, failed.
    TcpConnectionFails = 18,
    /// A valid OPEN.
    BgpOpen = 19,
    /// A valid OPEN before ours is sent.
    BgpOpenWithDelayOpenTimerRunning = 20,
    /// A message header that is wrong.
    BgpHeaderErr = 21,
    /// An OPEN that is wrong.
    BgpOpenMsgErr = 22,
    /// This connection lost a collision.
    OpenCollisionDump = 23,
    /// A NOTIFICATION about the version.
    NotifMsgVerErr = 24,
    /// Another NOTIFICATION.
    NotifMsg = 25,
    /// A KEEPALIVE.
    KeepAliveMsg = 26,
    /// An UPDATE, or a ROUTE-REFRESH, which came after RFC 4271.
    UpdateMsg = 27,
    /// An UPDATE that is wrong.
    UpdateMsgErr = 28,
}

impl FsmEvent {
    /// The number of RFC 4271 section 8.1.
    pub const fn number(self) -> u8 {
        // Fieldless, with the numbers as discriminants.
        self as u8
    }
}

/// A change of state and what caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Transition {
    /// The event.
    pub event: FsmEvent,
    /// Its number in RFC 4271 section 8.1.
    pub number: u8,
    /// State before.
    pub from: State,
    /// State after.
    pub to: State,
}

/// The last changes of state, oldest first, and how many there were.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    transitions: VecDeque<Transition>,
    pub(super) count: u64,
}

impl History {
    /// Records an event if it changed the state.
    pub(super) fn note(&mut self, event: FsmEvent, from: State, to: State) {
        if from == to {
            return;
        }
        if self.transitions.len() >= HISTORY_MAX {
            self.transitions.pop_front();
        }
        self.count += 1;
        self.transitions.push_back(Transition { event, number: event.number(), from, to });
    }

    pub(super) fn transitions(&self) -> impl Iterator<Item = &Transition> {
        self.transitions.iter()
    }
}
