//! What can go wrong when the speaker is told to do something. What goes wrong on a session is in [`crate::PeerState::last_error`].

use std::net::SocketAddr;

/// An error of the speaker's own interface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The speaker's settings make no sense.
    #[error("cannot start the BGP speaker: {what}; {remedy}")]
    Speaker {
        /// What is wrong.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A listener could not be opened.
    #[error(
        "cannot listen for BGP on {address}: {source}; is another BGP daemon running, or the address not on this host?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A peer's settings make no sense.
    #[error("cannot configure BGP peer {peer:?}: {what}; {remedy}")]
    Peer {
        /// The peer.
        peer: String,
        /// What is wrong.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A peer of that name or address exists.
    #[error("cannot add BGP peer {peer:?}: {with:?} has the same {what}; remove or update that one first")]
    Duplicate {
        /// The new peer.
        peer: String,
        /// The existing one.
        with: String,
        /// What is the same.
        what: &'static str,
    },
    /// A peer cannot do what is asked for as things stand.
    #[error("cannot do that to BGP peer {peer:?}: {what}; {remedy}")]
    Refused {
        /// The peer.
        peer: String,
        /// Why not.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// No peer of that name.
    #[error("no BGP peer is named {peer:?}; list the peers to see the names")]
    NoSuchPeer {
        /// The name asked for.
        peer: String,
    },
    /// The next hop's family is not the prefix's.
    #[error(
        "cannot announce {prefix} with next hop {next_hop}: their families differ; give a next hop of the prefix's family"
    )]
    NextHopFamily {
        /// The prefix.
        prefix: ipnet::IpNet,
        /// The next hop.
        next_hop: std::net::IpAddr,
    },
    /// The message log could not be started.
    #[error("cannot log BGP messages in {folder}: {source}; give a folder that can be written to")]
    MessageLog {
        /// The folder.
        folder: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The speaker has ended.
    #[error("the BGP speaker has stopped; start it again")]
    Stopped,
}

impl Error {
    pub(crate) const fn speaker(what: &'static str, remedy: &'static str) -> Self {
        Self::Speaker { what, remedy }
    }
}
