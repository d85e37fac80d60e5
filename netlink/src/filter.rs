//! Packet filters at a clsact hook: only whether a BPF program sits there.

use crate::connection::Netlink;
use crate::error::Error;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};

/// A side of the clsact hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClsactSide {
    /// What the interface receives.
    Ingress,
    /// What the interface sends.
    Egress,
}

impl Netlink {
    /// Whether a BPF filter sits at one side of an interface's clsact hook; false without such a hook.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses to tell, as for an interface that is gone.
    pub async fn has_bpf_filter(&self, link: u32, side: ClsactSide) -> Result<bool, Error> {
        let minor = match side {
            ClsactSide::Ingress => TcHandle::MIN_INGRESS,
            ClsactSide::Egress => TcHandle::MIN_EGRESS,
        };
        let mut message = TcMessage::default();
        message.header.index = i32::try_from(link).unwrap_or(i32::MAX);
        message.header.parent = TcHandle { major: u16::MAX, minor };
        let found = self
            .dump(RouteNetlinkMessage::GetTrafficFilter(message))
            .await
            .map_err(|refusal| refusal.on("list filters of", format!("interface index {link}")))?;
        let is_bpf = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "bpf");
        Ok(found.iter().any(|message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => filter.attributes.iter().any(is_bpf),
            _ => false,
        }))
    }
}
